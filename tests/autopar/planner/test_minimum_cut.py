"""The cut that decides what is kept, against all cuts of small random graphs."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from autopar.planner.minimum_cut import smallest_cut


def separates(cut: set[str], edges: list[tuple[str, str]], sources: set[str], targets: set[str]) -> bool:
    """True when no path from a source to a target avoids the cut."""
    found = set(sources) - cut
    waiting = list(found)
    while waiting:
        name = waiting.pop()
        for first, second in edges:
            if first == name and second not in cut | found:
                found.add(second)
                waiting.append(second)
    return not found & targets


@pytest.mark.parametrize("seed", range(60))
def test_no_cut_weighs_less(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"v{i}" for i in range(rng.randint(3, 8))]
    edges = [pair for pair in combinations(names, 2) if rng.random() < 0.45]
    weights = {name: rng.randint(0, 9) for name in names}
    sources, targets = set(names[:2]), set(rng.sample(names, 2))
    cut = set(smallest_cut(weights, edges, frozenset(sources), frozenset(targets)))
    least = min(
        sum(weights[name] for name in chosen)
        for size in range(len(names) + 1)
        for chosen in combinations(names, size)
        if separates(set(chosen), edges, sources, targets)
    )
    zero = {name for name in names if not weights[name]}
    assert separates(cut | zero, edges, sources, targets)
    assert sum(weights[name] for name in cut) == least


def test_among_equals_the_cut_lies_nearest_to_the_targets() -> None:
    weights = {"a": 2, "b": 2}
    assert smallest_cut(weights, [("a", "b")], frozenset("a"), frozenset("b")) == {"b"}
