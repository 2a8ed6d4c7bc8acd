"""Closed forms of pipelines equal what playing the schedule gives."""

from __future__ import annotations

import pytest

from cost_models.schedules import SCHEDULES, bubble_fraction, microbatches_in_flight, pipeline_s
from cost_models.simulator import simulate
from cost_models.simulator_pipeline import Pipeline, StageCost, pipeline_actions


def played_1f1b(
    stages: int, microbatches: int, forward_s: float, backward_s: float
) -> tuple[float, list[int]]:
    """(seconds, most microbatches held per stage), each stage taking its actions in 1F1B order."""
    orders = []
    for stage in range(stages):
        warm_up = min(stages - stage - 1, microbatches)
        steady = [pair for i in range(microbatches - warm_up) for pair in (("F", warm_up + i), ("B", i))]
        cool_down = [("B", i) for i in range(microbatches - warm_up, microbatches)]
        orders.append([("F", i) for i in range(warm_up)] + steady + cool_down)
    return play(orders, forward_s, backward_s)


def played_gpipe(
    stages: int, microbatches: int, forward_s: float, backward_s: float
) -> tuple[float, list[int]]:
    every = range(microbatches)
    return play([[("F", i) for i in every] + [("B", i) for i in every]] * stages, forward_s, backward_s)


def play(orders: list[list[tuple[str, int]]], forward_s: float, backward_s: float) -> tuple[float, list[int]]:
    """Runs every stage's actions in order, each when the action it needs has ended."""
    ended: dict[tuple[str, int, int], float] = {}
    clocks, positions = [0.0] * len(orders), [0] * len(orders)
    while any(position < len(order) for position, order in zip(positions, orders, strict=True)):
        for stage, order in enumerate(orders):
            while positions[stage] < len(order):
                kind, microbatch = order[positions[stage]]
                ready = needed_s(ended, kind, microbatch, stage, len(orders))
                if ready is None:
                    break
                clocks[stage] = max(clocks[stage], ready) + (forward_s if kind == "F" else backward_s)
                ended[kind, microbatch, stage] = clocks[stage]
                positions[stage] += 1
    return max(clocks), [most_held(order) for order in orders]


def needed_s(ended, kind: str, microbatch: int, stage: int, stages: int) -> float | None:
    if kind == "F":
        return 0.0 if stage == 0 else ended.get(("F", microbatch, stage - 1))
    before = ("F", microbatch, stage) if stage == stages - 1 else ("B", microbatch, stage + 1)
    return ended.get(before)


def most_held(order: list[tuple[str, int]]) -> int:
    held, most = 0, 0
    for kind, _ in order:
        held += 1 if kind == "F" else -1
        most = max(most, held)
    return most


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("microbatches", [1, 3, 8, 16])
@pytest.mark.parametrize(("schedule", "played"), [("1f1b", played_1f1b), ("gpipe", played_gpipe)])
def test_closed_forms_equal_the_played_schedule(
    schedule: str, played, stages: int, microbatches: int
) -> None:
    seconds, held = played(stages, microbatches, 1.0, 2.0)
    assert pipeline_s(schedule, [3.0] * stages, microbatches=microbatches) == pytest.approx(seconds)
    busy = 3.0 * microbatches / seconds
    bubble = bubble_fraction(schedule, stages=stages, microbatches=microbatches)
    assert bubble == pytest.approx(1 - busy) == pytest.approx((stages - 1) / (stages - 1 + microbatches))
    for stage in range(stages):
        form = microbatches_in_flight(schedule, stages=stages, stage=stage, microbatches=microbatches)
        assert form == held[stage]


def test_interleaving_divides_the_filling_by_the_chunks() -> None:
    plain = pipeline_s("1f1b", [3.0] * 4, microbatches=8)
    chunked = pipeline_s("interleaved", [3.0] * 4, microbatches=8, chunks=3)
    assert plain - 24.0 == pytest.approx(3 * (chunked - 24.0))


def test_zero_bubble_leaves_a_third_of_the_filling() -> None:
    assert pipeline_s("zero-bubble", [3.0] * 4, microbatches=8) == pytest.approx(24.0 + 3.0)
    assert pipeline_s("zero-bubble", [3.0] * 4, microbatches=8, chunks=2) == pytest.approx(24.0 + 1.5)


def test_waiting_weight_gradients_make_every_rank_hold_as_much_as_the_first() -> None:
    held = [microbatches_in_flight("zero-bubble", stages=4, stage=each, microbatches=8) for each in range(4)]
    assert held == [4.0] * 4


def test_interleaving_holds_more_on_the_first_rank_than_1f1b() -> None:
    """1 + (S−1)/(S·v) times 1F1B's memory (Korthikanti et al., 2022), to the microbatch."""
    held = microbatches_in_flight("interleaved", stages=8, stage=0, microbatches=64, chunks=4)
    assert held == pytest.approx(8 * (1 + 7 / (8 * 4)), abs=1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_stage_has_no_bubble(schedule: str) -> None:
    assert bubble_fraction(schedule, stages=1, microbatches=4) == 0.0
    assert pipeline_s(schedule, [2.0], microbatches=4) == 8.0


def test_the_slowest_stage_sets_the_pace() -> None:
    assert pipeline_s("1f1b", [1.0, 5.0, 1.0], microbatches=10) == pytest.approx(2.0 + 50.0)


def played_s(schedule: str, transfers_s: list[float], *, microbatches: int, chunks: int) -> float:
    """Ranks of 3 s a microbatch, the forward a third of it, and what each sends the next."""
    ranks = len(transfers_s)
    stages = [
        StageCost(
            *(1.0 / chunks,) * 3,
            send_forward_s=transfers_s[stage % ranks],
            send_backward_s=transfers_s[(stage - 1) % ranks],
        )
        for stage in range(ranks * chunks)
    ]
    return simulate(pipeline_actions(stages, Pipeline(schedule, ranks, microbatches))).step_s


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("transfer_s", [0.03, 0.3, 1.0])
@pytest.mark.parametrize(
    ("schedule", "chunks", "tolerance"),
    [("gpipe", 1, 0.001), ("1f1b", 1, 0.01), ("zero-bubble", 1, 0.15), ("interleaved", 2, 0.13)],
)
def test_transfers_set_the_pace_as_in_the_played_schedule(
    schedule: str, chunks: int, tolerance: float, transfer_s: float, ranks: int
) -> None:
    sizes = {"microbatches": 4 * ranks, "chunks": chunks}
    seconds = pipeline_s(schedule, [3.0] * ranks, transfer_s=transfer_s, **sizes)
    assert seconds == pytest.approx(played_s(schedule, [transfer_s] * ranks, **sizes), rel=tolerance)


def test_one_slow_boundary_holds_up_the_ranks_before_it() -> None:
    """The way between two nodes, in the middle of a pipeline whose other ways are fast."""
    transfers_s = [0.01, 0.01, 0.01, 1.0, 0.01, 0.01, 0.01, 0.0]
    seconds = pipeline_s("1f1b", [3.0] * 8, microbatches=64, transfer_s=transfers_s)
    played = played_s("1f1b", transfers_s, microbatches=64, chunks=1)
    assert seconds == pytest.approx(played, rel=0.05)
    assert seconds > 1.1 * pipeline_s("1f1b", [3.0] * 8, microbatches=64)


def test_a_single_microbatch_shows_every_transfer() -> None:
    seconds = pipeline_s("gpipe", [3.0] * 4, microbatches=1, transfer_s=0.5)
    assert seconds == pytest.approx(4 * 3.0 + 2 * 3 * 0.5)


@pytest.mark.parametrize(("schedule", "stages"), [("dapple", 2), ("1f1b", 0)])
def test_unknown_schedules_and_empty_pipelines_are_refused(schedule: str, stages: int) -> None:
    with pytest.raises(ValueError, match=r"unknown schedule|at least 1"):
        bubble_fraction(schedule, stages=stages, microbatches=1)
