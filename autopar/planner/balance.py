"""The evenest cut of a row of numbers into consecutive parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["balanced"]

HALVINGS = 40
"""Of the interval that the least possible maximum is looked for in."""


def balanced(numbers: Sequence[float], parts: int) -> tuple[int, ...]:
    """Ends of ``parts`` consecutive, non-empty parts, zero first, whose greatest sum is the least possible.

    Parts are filled from the right, so that the first one is the lightest. ``numbers`` are at least 0. Raises
    ``ValueError`` for fewer numbers than parts.
    """
    if len(numbers) < parts:
        raise ValueError(f"{len(numbers)} numbers cannot make {parts} parts")
    sums = [0.0, *accumulate(numbers)]
    low, high = max(max(numbers), sums[-1] / parts), sums[-1]
    best = _filled(sums, parts, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = _filled(sums, parts, middle)
        if found is None:
            low = middle
        else:
            best, high = found, max(sums[end] - sums[first] for first, end in pairwise(found))
        if high <= low:
            break
    assert best is not None, "one part more than the whole fits always"
    return best


def _filled(sums: list[float], parts: int, bound: float) -> tuple[int, ...] | None:
    """Ends of parts as full as ``bound`` allows, from the right; None where what is left is more than a part."""
    ends = [len(sums) - 1]
    slack = 1e-12 * sums[-1]
    for left in range(parts - 1, 0, -1):
        first = bisect_left(sums, sums[ends[-1]] - bound - slack)
        # Every part gets something, and leaves something for those before it.
        ends.append(max(min(first, ends[-1] - 1), left))
    ends.append(0)
    ends.reverse()
    return tuple(ends) if sums[ends[1]] <= bound + slack else None
