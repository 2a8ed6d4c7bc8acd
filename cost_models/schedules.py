"""Closed forms of pipeline schedules: how long, how idle, how many microbatches in flight.

GPipe: Huang et al. (2019). 1F1B: Narayanan et al., PipeDream-2BW (2021). Interleaved: Narayanan et al.,
"Efficient large-scale language model training on GPU clusters using Megatron-LM" (SC 2021). Zero bubble:
Qi et al., "Zero bubble pipeline parallelism" (2024), schedule ZB-H1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "SCHEDULES",
    "bubble_fraction",
    "check_schedule",
    "microbatches_in_flight",
    "microbatches_per_round",
    "pipeline_s",
]

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


def bubble_fraction(schedule: str, *, stages: int, microbatches: int, chunks: int = 1) -> float:
    """Idle share of a pipeline of equal stages, 0 to 1.

    GPipe and 1F1B: (S−1)/(S−1+M). Interleaving divides the filling by the ``chunks`` each rank holds. ZB-H1
    fills two thirds of it with weight gradients, where forward, input and weight gradient take equally long;
    with chunks it does both.
    """
    check_schedule(schedule, stages, microbatches, chunks)
    filling = (stages - 1) / _filling_divisor(schedule, chunks)
    return filling / (filling + microbatches)


def pipeline_s(
    schedule: str,
    stage_s: Sequence[float],
    *,
    microbatches: int,
    chunks: int = 1,
    transfer_s: float | Sequence[float] = 0.0,
) -> float:
    """Seconds from the first microbatch to the last gradient: Σ tᵢ + (M−1)·max tⱼ, less what fills bubbles.

    ``stage_s`` is forward + backward of one microbatch on each pipeline rank; ``transfer_s`` one way from a rank
    to the next for one microbatch, or an entry for each rank, where the last one's is for the way to the first.
    A transfer runs beside compute, but the schedule lets only so many microbatches be under way: see ``_pace_s``.
    """
    check_schedule(schedule, len(stage_s), microbatches, chunks)
    transfers_s = (transfer_s,) * len(stage_s) if isinstance(transfer_s, float | int) else tuple(transfer_s)
    slowest = max(stage_s)
    pace_s = max(slowest, _pace_s(schedule, stage_s, microbatches, chunks, transfers_s))
    filling = (sum(stage_s) - slowest) / _filling_divisor(schedule, chunks)
    # Where the last transfer of 1F1B holds up what is under way, it is in the pace already.
    is_held_up = pace_s > slowest and schedule != "gpipe" and chunks == 1
    first_s = transfers_s[: len(stage_s) - (2 if is_held_up else 1)]
    return filling + microbatches * pace_s + 2.0 * sum(first_s)


def _pace_s(
    schedule: str, stage_s: Sequence[float], microbatches: int, chunks: int, transfers_s: Sequence[float]
) -> float:
    """Seconds between one microbatch and the next where transfers set the pace.

    A rank begins another forward only when a backward has ended. In 1F1B that makes a circle of every n ranks in
    a row: forwards there, backwards back, 2 (n − 1) transfers, and n microbatches for each time round; interleaved
    it is 2 n − 1 passes, of which a microbatch makes one by chunk, and once more all chunks together. GPipe has
    all microbatches under way, and is held up only by a transfer that takes longer than a stage. Against the
    played schedules: tests/cost_models/test_schedules.py.
    """
    ranks = len(stage_s)
    between = transfers_s[: ranks - 1]
    if not any(transfers_s):
        return 0.0
    if schedule == "gpipe":
        return 2.0 * max(between, default=0.0)
    if chunks == 1 and schedule != "interleaved":
        return _slowest_circle_s(stage_s, between, np.arange(1.0, ranks + 1.0))
    ways = chunks * np.asarray(between)
    circle_s = _slowest_circle_s(stage_s, ways, 2.0 * np.arange(1.0, ranks + 1.0) - 1.0)
    cuts_s = float(ways.sum()) + (chunks - 1) * transfers_s[-1]
    return max(circle_s, (sum(stage_s) + 2.0 * cuts_s) / _first_under_way(ranks, microbatches, chunks))


def _slowest_circle_s(
    stage_s: Sequence[float], between_s: ArrayLike, under_way: NDArray[np.float64]
) -> float:
    """The most seconds a microbatch over all runs of two ranks or more; ``under_way`` counts by their number."""
    ranks = len(stage_s)
    stages = np.concatenate([[0.0], np.cumsum(stage_s)])
    ways = np.concatenate([[0.0], np.cumsum(between_s)])
    first, last = np.triu_indices(ranks, 1)
    circles = stages[last + 1] - stages[first] + 2.0 * (ways[last] - ways[first])
    return float((circles / under_way[last - first]).max(initial=0.0))


def _first_under_way(ranks: int, microbatches: int, chunks: int) -> int:
    """Microbatches that the first rank has under way through its first chunk, interleaved."""
    per_round = microbatches_per_round(ranks, microbatches)
    passes = 2 * (ranks - 1) + (chunks - 1) * per_round + 1
    rounds, left = divmod(passes, per_round * chunks)
    return min(rounds * per_round + min(left, per_round), microbatches)


def microbatches_in_flight(
    schedule: str, *, stages: int, stage: int, microbatches: int, chunks: int = 1
) -> float:
    """Most microbatches whose activations ``stage`` (0 first) holds at once, in units of the whole stage.

    Interleaving holds (S−1)/(S·chunks) more than 1F1B on the first rank. Where weight gradients wait to fill
    bubbles, every rank holds as much as the first: what the gradient of a weight needs counts until it is made.
    """
    check_schedule(schedule, stages, microbatches, chunks)
    if schedule == "gpipe":
        return float(microbatches)
    if schedule == "1f1b":
        return float(min(stages - stage, microbatches))
    ahead = 2 * (stages - stage - 1) if schedule == "interleaved" else stages - 1
    ahead += (chunks - 1) * microbatches_per_round(stages, microbatches)
    return min((ahead + 1) / chunks, float(microbatches))


def microbatches_per_round(stages: int, microbatches: int) -> int:
    """How many microbatches a rank of several stages takes through one of them before it turns to the next."""
    return microbatches // max(1, microbatches // stages)


def _filling_divisor(schedule: str, chunks: int) -> float:
    return {"interleaved": float(chunks), "zero-bubble": 3.0 * chunks}.get(schedule, 1.0)


def check_schedule(schedule: str, stages: int, microbatches: int, chunks: int) -> None:
    """Raises ``ValueError`` unless there is such a schedule of at least one stage, microbatch and chunk."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: known are {', '.join(SCHEDULES)}")
    if min(stages, microbatches, chunks) < 1:
        raise ValueError(
            f"{stages} stages, {microbatches} microbatches, {chunks} chunks: all must be at least 1"
        )
