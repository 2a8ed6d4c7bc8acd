"""Consecutive segment calls onto equal stages: inter-operator parallelism by dynamic programming.

The step of a pipeline of stages that take tᵢ seconds for one of B microbatches is Σ tᵢ + (B−1)·max tⱼ (Zheng et
al., Alpa, OSDI 2022, section 5). For a given bound on max tⱼ, the least Σ tᵢ over all cuts into S consecutive,
non-empty parts is a shortest path; bounds are tried in ascending order until none can win. A stage whose
activations do not fit recomputes as little as it must, so that early stages may recompute while late ones do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["CallCost", "Part", "partition"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CallCost:
    """One segment call on one device of its stage."""

    seconds: tuple[float, ...]
    """Forward and backward of one microbatch, by recompute level, from the fastest to the leanest."""
    kept_bytes: tuple[float, ...]
    """Kept for the backward of one microbatch, by level."""
    held_bytes: float
    """Parameters, gradients and optimizer state."""
    working_bytes: float
    """Held beside all that while the call runs."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive calls on one stage."""

    first: int
    last: int
    level: int
    """Position of the recompute level."""
    seconds: float
    """One microbatch, forward and backward."""
    peak_bytes: float


def partition(
    calls: Sequence[CallCost], in_flight: Sequence[float], limit_bytes: float, microbatches: int
) -> tuple[Part, ...] | None:
    """The fastest cut of ``calls`` into as many stages as ``in_flight`` has entries; None where none fits.

    ``in_flight`` says how many microbatches' activations each stage holds at its peak.
    """
    stages, count = len(in_flight), len(calls)
    if count < stages:
        return None
    seconds, peaks = _ranges(calls, in_flight)
    # Per stage, first and one-past-last call: seconds at the least level that fits, infinity where none does.
    fits = peaks <= limit_bytes
    levels = np.where(fits.any(axis=1), fits.argmax(axis=1), -1)
    timed = np.where(
        levels >= 0, np.take_along_axis(seconds[None], np.maximum(levels, 0)[:, None], 1)[:, 0], np.inf
    )
    least = _least_maximum(timed)
    if not np.isfinite(least):
        return None
    best = _best_cut(timed, least, microbatches)
    return tuple(
        Part(
            first,
            last - 1,
            int(levels[stage, first, last]),
            float(timed[stage, first, last]),
            float(peaks[stage, levels[stage, first, last], first, last]),
        )
        for stage, (first, last) in enumerate(pairwise(best))
    )


def _best_cut(timed: Array, least: float, microbatches: int) -> tuple[int, ...]:
    """Ends of the ranges, zero first, that take the least time of all."""
    unbounded = _least_sum(timed)
    least_sum = sum(timed[stage, a, b] for stage, (a, b) in enumerate(pairwise(unbounded)))
    best, best_s = unbounded, _pipeline_s(timed, unbounded, microbatches)
    for bound in np.unique(timed[(timed >= least) & np.isfinite(timed)]):
        if least_sum + (microbatches - 1) * bound >= best_s:
            break
        cut = _least_sum(np.where(timed <= bound, timed, np.inf))
        seconds = _pipeline_s(timed, cut, microbatches)
        best, best_s = (cut, seconds) if seconds < best_s else (best, best_s)
    return best


def _ranges(calls: Sequence[CallCost], in_flight: Sequence[float]) -> tuple[Array, Array]:
    """Seconds[level, first, end] and peak bytes[stage, level, first, end] of every range of calls."""
    seconds = np.array([call.seconds for call in calls]).T
    kept = np.array([call.kept_bytes for call in calls]).T
    held = np.array([call.held_bytes for call in calls])
    working = _range_maximum(np.array([call.working_bytes for call in calls]))
    flights = np.array(in_flight)[:, None, None, None]
    peaks = flights * _range_sum(kept)[None] + (_range_sum(held[None]) + working)[None]
    return _range_sum(seconds), peaks


def _range_sum(rows: Array) -> Array:
    """Sums over every range [first, end) of each row; infinity where the range is empty."""
    total = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
    sums = total[:, None, :] - total[:, :, None]
    size = rows.shape[1] + 1
    return np.where(np.triu(np.ones((size, size), bool), 1), sums, np.inf)


def _range_maximum(values: Array) -> Array:
    size = len(values) + 1
    found = np.full((size, size), np.inf)
    for first in range(len(values)):
        found[first, first + 1 :] = np.maximum.accumulate(values[first:])
    return found


def _least_maximum(timed: Array) -> float:
    """The least possible time of the slowest stage."""
    reach = np.full(timed.shape[1], np.inf)
    reach[0] = 0.0
    for stage in timed:
        reach = np.maximum(reach[:, None], stage).min(axis=0)
    return float(reach[-1])


def _least_sum(timed: Array) -> tuple[int, ...]:
    """Ends of the ranges, zero first, whose seconds add up to the least."""
    reach = np.full(timed.shape[1], np.inf)
    reach[0] = 0.0
    back = []
    for stage in timed:
        through = reach[:, None] + stage
        back.append(through.argmin(axis=0))
        reach = through.min(axis=0)
    ends = [timed.shape[1] - 1]
    for came_from in reversed(back):
        ends.append(int(came_from[ends[-1]]))
    return tuple(reversed(ends))


def _pipeline_s(timed: Array, cut: tuple[int, ...], microbatches: int) -> float:
    stages = [timed[stage, a, b] for stage, (a, b) in enumerate(pairwise(cut))]
    return float(sum(stages) + (microbatches - 1) * max(stages))
