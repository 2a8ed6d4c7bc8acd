"""Orders are those that torch.distributed.pipelining runs, action by action."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from cost_models.schedule_actions import with_gathers, with_reductions, with_transfers
from cost_models.schedule_orders import compute_orders
from cost_models.schedules import SCHEDULES
from tests.cost_models.torch_schedules import orders_with_transfers, recorded_order

NUMBERS = list(itertools.product([1, 2, 3, 4], [1, 2, 3, 4, 6, 8, 12]))
"""(ranks, microbatches)"""


@pytest.mark.parametrize("schedule", ["interleaved", "zero-bubble"])
@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
def test_orders_of_several_stages_are_torchs_with_all_they_send_gather_and_reduce(
    schedule: str, chunks: int
) -> None:
    for ranks, microbatches in NUMBERS:
        sizes = {"ranks": ranks, "microbatches": microbatches, "chunks": chunks}
        try:
            expected = orders_with_transfers(schedule, **sizes)
        except ValueError:
            with pytest.raises(ValueError, match="make them a multiple of"):
                compute_orders(schedule, **sizes)
            continue
        orders = [
            with_reductions(with_gathers(order), microbatches) for order in compute_orders(schedule, **sizes)
        ]
        found = with_transfers(orders, ranks * chunks)
        assert [list(map(str, order)) for order in found] == expected, sizes


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (2, 2), (2, 5), (4, 4), (4, 9)])
def test_orders_of_one_stage_are_those_that_torch_runs(schedule: str, ranks: int, microbatches: int) -> None:
    orders = compute_orders(schedule, ranks=ranks, microbatches=microbatches)
    for rank, order in enumerate(orders):
        found = list(map(str, with_reductions(order, microbatches)))
        assert found == recorded_order(schedule, rank=rank, ranks=ranks, microbatches=microbatches)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (4, 2), (3, 6), (4, 16)])
def test_every_stage_takes_every_microbatch_once(schedule: str, ranks: int, microbatches: int) -> None:
    chunks = 2 if schedule in ("interleaved", "zero-bubble") else 1
    orders = compute_orders(schedule, ranks=ranks, microbatches=microbatches, chunks=chunks)
    counts = Counter(action for order in orders for action in order)
    kinds = ("F", "I", "W") if schedule == "zero-bubble" else ("F", "B")
    assert set(counts.values()) == {1}
    assert len(counts) == ranks * chunks * microbatches * len(kinds)
    assert {action.kind for action in counts} == set(kinds)
    assert all(action.stage % ranks == rank for rank, order in enumerate(orders) for action in order)


@pytest.mark.parametrize(
    ("schedule", "sizes", "words"),
    [
        ("dapple", {"ranks": 2, "microbatches": 2}, "unknown schedule"),
        ("gpipe", {"ranks": 0, "microbatches": 2}, "at least 1"),
        ("1f1b", {"ranks": 2, "microbatches": 2, "chunks": 2}, "one stage per rank"),
        ("interleaved", {"ranks": 2, "microbatches": 5, "chunks": 2}, "a multiple of 2, such as 4"),
    ],
)
def test_what_no_schedule_takes_is_refused(schedule: str, sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compute_orders(schedule, **sizes)
