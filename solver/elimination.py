"""Exact min-plus variable elimination on narrow graphs (Bertelè and Brioschi, 1972); ignores usage.

Eliminating a node adds up its factors, takes the minimum over its strategies, and leaves one factor over its
neighbours. Walking back gives each node's strategy from those of the neighbours it was eliminated towards.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from solver.factors import Classes, Factor, Refiner, eliminated, form_factors, node_prices, shared_axes
from solver.normal_form import NormalForm
from solver.solution import Solution, Status

__all__ = ["MAX_ENTRIES", "solve_by_elimination"]

MAX_ENTRIES = 8_000_000
"""Largest table made: 64 MB of float64."""


@dataclass(slots=True)
class _Elimination:
    """Factors that are left, and the ones that were used up for each node, in order."""

    form: NormalForm
    refiner: Refiner
    factors: dict[int, Factor] = field(default_factory=dict)
    touching: list[set[int]] = field(default_factory=list)
    done: list[tuple[int, list[Factor]]] = field(default_factory=list)


def solve_by_elimination(
    form: NormalForm, *, max_entries: int = MAX_ENTRIES, time_limit_s: float = math.inf
) -> Solution | None:
    """The optimum without regard to usage; None when tables or time would be exceeded."""
    start_s = time.perf_counter()
    state = _started(form, max_entries)
    if state is None:
        return None
    sizes = {node: _table_size(state, node) for node in range(len(form.costs))}
    while sizes:
        node = min(sizes, key=lambda v: (sizes[v], v))
        if sizes.pop(node) > max_entries or time.perf_counter() - start_s > time_limit_s:
            return None
        for neighbour in _eliminate(state, node):
            sizes[neighbour] = _table_size(state, neighbour)
    picks = _walk_back(state)
    cost = sum(float(factor.costs) for factor in state.factors.values())
    wall_s = time.perf_counter() - start_s
    if not math.isfinite(cost):
        return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, "elimination")
    return Solution(Status.optimal, picks, cost, cost, wall_s, "elimination")


def _started(form: NormalForm, max_entries: int) -> _Elimination | None:
    """All factors of a form, or None when one of them is too large by itself."""
    state = _Elimination(form, Refiner(), touching=[set() for _ in form.costs])
    for shared in form.shared:
        if math.prod(axis.count for axis in shared_axes(shared, state.refiner).values()) > max_entries:
            return None
    for factor in form_factors(form, state.refiner):
        _add(state, factor)
    return state


def _add(state: _Elimination, factor: Factor) -> None:
    number = len(state.factors) + len(state.done) * len(state.form.costs)
    while number in state.factors:
        number += 1
    state.factors[number] = factor
    for node in factor.nodes:
        state.touching[node].add(number)


def _axes(state: _Elimination, node: int) -> dict[int, Classes]:
    """The node and its neighbours, each with what the node's factors tell apart of it."""
    parts: dict[int, list[Classes]] = {node: []}
    for number in sorted(state.touching[node]):
        factor = state.factors[number]
        for v, classes in zip(factor.nodes, factor.classes, strict=True):
            parts.setdefault(v, []).append(classes)
    if not parts[node]:
        parts[node] = [state.refiner.classes(np.zeros(state.form.costs[node].size, dtype=np.int64))]
    return {v: state.refiner.common(classes) for v, classes in parts.items()}


def _table_size(state: _Elimination, node: int) -> int:
    """Entries of the table that eliminating a node leaves."""
    return math.prod(classes.count for v, classes in _axes(state, node).items() if v != node)


def _eliminate(state: _Elimination, node: int) -> tuple[int, ...]:
    """Replace a node's factors by their minimum over it; returns its neighbours."""
    axes = _axes(state, node)
    own = axes.pop(node)
    numbers = sorted(state.touching[node])
    factors = [state.factors.pop(number) for number in numbers]
    for factor in factors:
        for v in factor.nodes:
            state.touching[v].difference_update(numbers)
    state.done.append((node, factors))
    _add(state, eliminated(node_prices(state.form.costs[node], own), node, own, factors, axes))
    return tuple(axes)


def _walk_back(state: _Elimination) -> tuple[int, ...]:
    """The best strategy of each node given those eliminated after it."""
    picks = [0] * len(state.form.costs)
    for node, factors in reversed(state.done):
        total = state.form.costs[node]
        for factor in factors:
            index = tuple(
                classes.of if v == node else classes.of[picks[v]]
                for v, classes in zip(factor.nodes, factor.classes, strict=True)
            )
            total = total + factor.costs[index]
        picks[node] = int(np.argmin(total))
    return tuple(picks)
