"""Stages by dynamic programming are as good as the best of all cuts."""

from __future__ import annotations

import itertools
import random

import pytest

from autopar.planner.partition import CallCost, partition


def random_calls(rng: random.Random, count: int) -> list[CallCost]:
    calls = []
    for _ in range(count):
        seconds, kept = rng.uniform(1, 5), rng.uniform(1, 8)
        calls.append(
            CallCost((seconds, 1.3 * seconds), (kept, 0.2 * kept), rng.uniform(0, 4), rng.uniform(0, 3))
        )
    return calls


def exhaustive(calls: list[CallCost], in_flight: list[float], limit: float, microbatches: int) -> float:
    """Least Σ t + (B−1)·max t over all cuts and levels; infinity where nothing fits."""
    best = float("inf")
    for inner in itertools.combinations(range(1, len(calls)), len(in_flight) - 1):
        ends = (0, *inner, len(calls))
        stages = []
        for stage, (a, b) in enumerate(itertools.pairwise(ends)):
            part = calls[a:b]
            options = [
                sum(call.seconds[level] for call in part)
                for level in range(2)
                if sum(in_flight[stage] * call.kept_bytes[level] + call.held_bytes for call in part)
                + max(call.working_bytes for call in part)
                <= limit
            ]
            stages.append(min(options, default=float("inf")))
        best = min(best, sum(stages) + (microbatches - 1) * max(stages))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_the_cut_is_as_fast_as_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    calls = random_calls(rng, rng.randint(2, 8))
    stages = rng.randint(1, min(4, len(calls)))
    microbatches = rng.choice([1, 4, 16, 64])
    in_flight = [float(min(stages - stage, microbatches)) for stage in range(stages)]
    limit = rng.uniform(10, 60)
    best = exhaustive(calls, in_flight, limit, microbatches)
    parts = partition(calls, in_flight, limit, microbatches)
    if parts is None:
        assert best == float("inf")
        return
    found = sum(part.seconds for part in parts) + (microbatches - 1) * max(part.seconds for part in parts)
    assert found == pytest.approx(best)
    assert [part.first for part in parts] == [0, *(part.last + 1 for part in parts[:-1])]
    assert parts[-1].last == len(calls) - 1
    assert all(part.peak_bytes <= limit for part in parts)


def test_early_stages_recompute_where_late_ones_need_not() -> None:
    calls = [CallCost((1.0, 1.33), (4.0, 0.5), 1.0, 0.0) for _ in range(8)]
    parts = partition(calls, [4.0, 3.0, 2.0, 1.0], 20.0, 16)
    assert parts is not None
    assert [part.level for part in parts] == sorted((part.level for part in parts), reverse=True)
    assert parts[0].level == 1
    assert parts[-1].level == 0


def test_fewer_calls_than_stages_cannot_be_cut() -> None:
    assert partition([CallCost((1.0,), (1.0,), 1.0, 0.0)], [2.0, 1.0], 100.0, 4) is None
