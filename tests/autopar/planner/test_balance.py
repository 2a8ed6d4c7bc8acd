"""The evenest cut is the evenest of all cuts."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.planner.balance import balanced


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=9), st.integers(1, 9))
def test_no_cut_has_a_smaller_maximum(numbers: list[float], parts: int) -> None:
    if parts > len(numbers):
        with pytest.raises(ValueError, match="cannot make"):
            balanced(numbers, parts)
        return
    ends = balanced(numbers, parts)
    assert ends[0] == 0
    assert ends[-1] == len(numbers)
    assert all(first < end for first, end in pairwise(ends))
    cuts = ((0, *inner, len(numbers)) for inner in combinations(range(1, len(numbers)), parts - 1))
    assert _greatest(numbers, ends) == pytest.approx(min(_greatest(numbers, cut) for cut in cuts), rel=1e-9)


def test_the_first_part_is_the_lightest_of_equals() -> None:
    assert balanced([1.0] * 7, 3) == (0, 1, 4, 7)


def _greatest(numbers: list[float], ends: tuple[int, ...]) -> float:
    return max(sum(numbers[first:end]) for first, end in pairwise(ends))
