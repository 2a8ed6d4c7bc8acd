"""Exact min-plus variable elimination on narrow graphs (Bertelè and Brioschi, 1972); ignores usage.

Eliminating a node adds up its factors, takes the minimum over its strategies, and leaves one factor over its
neighbours. Walking back gives each node's strategy from those of the neighbours it was eliminated towards;
sending messages back gives the least cost under each strategy of each node.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from solver.factors import Classes, Factor, Refiner, form_factors, least_onto, node_prices, shared_axes
from solver.factors import eliminated as without_node
from solver.normal_form import NormalForm
from solver.problem import FloatArray
from solver.solution import Solution, Status

__all__ = ["MAX_ENTRIES", "Elimination", "eliminate", "solve_by_elimination"]

MAX_ENTRIES = 8_000_000
"""Largest table made: 64 MB of float64."""

MAX_MARGINAL_ENTRIES = 50_000_000
"""Largest sum for min-marginals, made in slices: half a second."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One node's elimination: its factors, and the factor over its neighbours that took their place."""

    node: int
    own: Classes
    axes: dict[int, Classes]
    factors: list[Factor]
    message: Factor


@dataclass(slots=True)
class Elimination:
    """All nodes eliminated, in order."""

    form: NormalForm
    refiner: Refiner
    steps: list[_Step] = field(default_factory=list)
    factors: dict[int, Factor] = field(default_factory=dict)
    """Factors not used up yet, by number; at the end constants."""
    touching: list[set[int]] = field(default_factory=list)
    """Numbers of the factors of each node."""
    count: int = 0

    @property
    def cost(self) -> float:
        """Cost of the optimum; inf when every choice is forbidden."""
        return self.form.constant + sum(float(factor.costs) for factor in self.factors.values())

    def picks(self) -> tuple[int, ...]:
        """The best strategy of each node given those eliminated after it."""
        picks = [0] * len(self.form.costs)
        for step in reversed(self.steps):
            total = self.form.costs[step.node]
            for factor in step.factors:
                index = tuple(
                    classes.of if v == step.node else classes.of[picks[v]]
                    for v, classes in zip(factor.nodes, factor.classes, strict=True)
                )
                total = total + factor.costs[index]
            picks[step.node] = int(np.argmin(total))
        return tuple(picks)

    def min_marginals(self, *, max_entries: int = MAX_MARGINAL_ENTRIES) -> list[FloatArray] | None:
        """For each node, the least cost of all choices with each of its strategies; None when too large."""
        if any(_full_size(step) > max_entries for step in self.steps):
            return None
        messages = {id(step.message) for step in self.steps}
        outside: dict[int, Factor] = {}  # by id of a message: the least cost of all that is not behind it
        marginals = list(self.form.costs)
        for step in reversed(self.steps):
            factors = list(step.factors)
            spare = 0.0 if step.axes else self.cost - float(step.message.costs)
            if step.axes:
                factors.append(outside.pop(id(step.message)))
            prices = node_prices(self.form.costs[step.node], step.own) + spare
            least = least_onto(prices, step.node, step.own, factors, step.axes, None).costs
            marginals[step.node] = self.form.costs[step.node] + spare + (least - prices)[step.own.of]
            for factor in step.factors:
                if id(factor) in messages:
                    rest = [other for other in factors if other is not factor]
                    outside[id(factor)] = least_onto(prices, step.node, step.own, rest, step.axes, factor)
        return marginals


def eliminate(
    form: NormalForm, *, max_entries: int = MAX_ENTRIES, time_limit_s: float = math.inf
) -> Elimination | None:
    """Eliminate all nodes, smallest table first; None when a table or the time would be exceeded."""
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
    return state


def solve_by_elimination(
    form: NormalForm, *, max_entries: int = MAX_ENTRIES, time_limit_s: float = math.inf
) -> Solution | None:
    """The optimum without regard to usage; None when a table or the time would be exceeded."""
    start_s = time.perf_counter()
    state = eliminate(form, max_entries=max_entries, time_limit_s=time_limit_s)
    if state is None:
        return None
    cost, wall_s = state.cost, time.perf_counter() - start_s
    if not math.isfinite(cost):
        return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, "elimination")
    return Solution(Status.optimal, state.picks(), cost, cost, wall_s, "elimination")


def _started(form: NormalForm, max_entries: int) -> Elimination | None:
    """All factors of a form, or None when one of them is too large by itself."""
    state = Elimination(form, Refiner(), touching=[set() for _ in form.costs])
    for shared in form.shared:
        if math.prod(axis.count for axis in shared_axes(shared, state.refiner).values()) > max_entries:
            return None
    for factor in form_factors(form, state.refiner):
        _add(state, factor)
    return state


def _add(state: Elimination, factor: Factor) -> None:
    state.factors[state.count] = factor
    for node in factor.nodes:
        state.touching[node].add(state.count)
    state.count += 1


def _axes(state: Elimination, node: int) -> dict[int, Classes]:
    """The node and its neighbours, each with what the node's factors tell apart of it."""
    parts: dict[int, list[Classes]] = {node: []}
    for number in sorted(state.touching[node]):
        factor = state.factors[number]
        for v, classes in zip(factor.nodes, factor.classes, strict=True):
            parts.setdefault(v, []).append(classes)
    if not parts[node]:
        parts[node] = [state.refiner.classes(np.zeros(state.form.costs[node].size, dtype=np.int64))]
    return {v: state.refiner.common(classes) for v, classes in parts.items()}


def _table_size(state: Elimination, node: int) -> int:
    """Entries of the table that eliminating a node leaves."""
    return math.prod(classes.count for v, classes in _axes(state, node).items() if v != node)


def _full_size(step: _Step) -> int:
    return step.own.count * math.prod(classes.count for classes in step.axes.values())


def _eliminate(state: Elimination, node: int) -> tuple[int, ...]:
    """Replace a node's factors by their minimum over it; returns its neighbours."""
    axes = _axes(state, node)
    own = axes.pop(node)
    numbers = sorted(state.touching[node])
    factors = [state.factors.pop(number) for number in numbers]
    for factor in factors:
        for v in factor.nodes:
            state.touching[v].difference_update(numbers)
    message = without_node(node_prices(state.form.costs[node], own), node, own, factors, axes)
    state.steps.append(_Step(node, own, axes, factors, message))
    _add(state, message)
    return tuple(axes)
