"""The intra-operator ILP stated in PuLP, solved by HiGHS (by CBC where highspy is not installed).

Binary x[v,s] picks a strategy; continuous y carries the pair of classes at both ends of a tensor's use, with
exact marginals (sums over either end equal the sums of x there), so forbidden pairs have no variable and the
relaxation is integral or nearly so; continuous m[p,w] ≥ y pays each version of a shared tensor once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from solver.highs import has_highs, new_highs
from solver.normal_form import NormalForm
from solver.problem import IntArray
from solver.solution import Solution, Status

__all__ = ["OBJECTIVE_SIZE", "objective_scale", "solve_by_pulp"]

OBJECTIVE_SIZE = 1e3
"""Size to which objectives are scaled: HiGHS stops at an absolute gap of 1e-6 whatever the units are."""

Table = dict[tuple[int, int], pulp.LpVariable]


@dataclass(frozen=True, slots=True)
class Variables:
    """The unknowns of one model."""

    x: list[list[pulp.LpVariable]]
    """x[v][s]: node v uses strategy s."""
    y_pairs: list[Table]
    """For each pair, y[a, b]: its first node has class a and its second class b."""
    y_shared: list[list[Table]]
    """For each shared tensor and consumer, y[p, w]: class p was produced and the consumer wants w."""
    m: list[Table]
    """For each shared tensor, m[p, w]: version w was made from class p."""
    one: pulp.LpVariable
    """1, to carry the constant: a relative gap must see it."""


def solve_by_pulp(form: NormalForm, *, time_limit_s: float, gap: float) -> Solution:
    """The best picks for a normal form, proven to the relative ``gap`` unless the time runs out."""
    start_s = time.perf_counter()
    scale = objective_scale(form)
    model = pulp.LpProblem("planning", pulp.LpMinimize)
    variables = _variables(model, form)
    model += pulp.lpSum(_priced(form, variables, scale))
    for constraint in (
        *one_strategy_per_node(variables),
        *pairs_follow_their_nodes(form, variables),
        *uses_follow_their_nodes(form, variables),
        *versions_serve_their_uses(variables),
        *usage_fits(form, variables),
    ):
        model += constraint
    left_s = max(0.01, time_limit_s - (time.perf_counter() - start_s))
    return _run(model, variables, scale=scale, time_limit_s=left_s, gap=gap, start_s=start_s)


def objective_scale(form: NormalForm) -> float:
    """Factor that brings the costs to about ``OBJECTIVE_SIZE``: they may be seconds or byte counts."""
    spread = sum(float(costs.max() - costs.min()) for costs in form.costs)
    tables = [pair.costs for pair in form.pairs] + [shared.costs for shared in form.shared]
    largest = max((float(np.abs(t[np.isfinite(t)]).max(initial=0.0)) for t in tables), default=0.0)
    size = max(abs(sum(float(costs.min()) for costs in form.costs)), spread / 10, largest)
    return OBJECTIVE_SIZE / size if size > 0 else 1.0


def one_strategy_per_node(variables: Variables) -> Iterator[pulp.LpConstraint]:
    for x in variables.x:
        yield pulp.lpSum(x) == 1


def pairs_follow_their_nodes(form: NormalForm, variables: Variables) -> Iterator[pulp.LpConstraint]:
    for pair, y in zip(form.pairs, variables.y_pairs, strict=True):
        for end in (0, 1):
            yield from _marginals(y, end, pair.classes[end], variables.x[pair.nodes[end]])


def uses_follow_their_nodes(form: NormalForm, variables: Variables) -> Iterator[pulp.LpConstraint]:
    for shared, uses in zip(form.shared, variables.y_shared, strict=True):
        for consumer, wanted, y in zip(shared.consumers, shared.wanted, uses, strict=True):
            yield from _marginals(y, 0, shared.produced, variables.x[shared.producer])
            yield from _marginals(y, 1, wanted, variables.x[consumer])


def versions_serve_their_uses(variables: Variables) -> Iterator[pulp.LpConstraint]:
    for m, uses in zip(variables.m, variables.y_shared, strict=True):
        for y in uses:
            for key, use in y.items():
                if key in m:
                    yield m[key] >= use


def usage_fits(form: NormalForm, variables: Variables) -> Iterator[pulp.LpConstraint]:
    """Live usage at each time point, in units of the largest room."""
    unit = form.room.max(initial=0.0) or 1.0
    held: list[list[pulp.LpAffineExpression]] = [[] for _ in form.room]
    for load, x in zip(form.loads, variables.x, strict=True):
        for start, end, usages in zip(load.starts, load.ends, load.usages, strict=True):
            usage = _weighted(usages / unit, x)
            for point in range(start, end):
                held[point].append(usage)
    for shared, m in zip(form.shared, variables.m, strict=True):
        shares = shared.usages / unit
        usage = pulp.LpAffineExpression((made, shares[w]) for (_, w), made in m.items() if shares[w] > 0)
        for point in range(*shared.times):
            held[point].append(usage)
    for terms, room in zip(held, form.room, strict=True):
        if terms:
            yield pulp.lpSum(terms) <= float(room / unit)


def _priced(form: NormalForm, variables: Variables, scale: float) -> Iterator[pulp.LpAffineExpression]:
    yield variables.one * (form.constant * scale)
    for costs, x in zip(form.costs, variables.x, strict=True):
        yield _weighted(costs * scale, x)
    tables = [pair.costs for pair in form.pairs] + [shared.costs for shared in form.shared]
    for table, y in zip(tables, (*variables.y_pairs, *variables.m), strict=True):
        yield pulp.LpAffineExpression(
            (variable, float(table[key]) * scale) for key, variable in y.items() if table[key]
        )


def _variables(model: pulp.LpProblem, form: NormalForm) -> Variables:
    make = getattr(model, "add_variable", pulp.LpVariable)  # PuLP before 3.3 has only the latter
    allowed = [np.isfinite(shared.costs) for shared in form.shared]
    return Variables(
        one=make("one", lowBound=1, upBound=1),
        x=[
            [make(f"x_{v}_{s}", cat=pulp.LpBinary) for s in range(costs.size)]
            for v, costs in enumerate(form.costs)
        ],
        y_pairs=[
            _table(make, f"y_{number}", np.isfinite(pair.costs)) for number, pair in enumerate(form.pairs)
        ],
        y_shared=[
            [_table(make, f"z_{number}_{use}", allowed[number]) for use in range(len(shared.consumers))]
            for number, shared in enumerate(form.shared)
        ],
        m=[
            _table(make, f"m_{number}", allowed[number] & ((shared.costs > 0) | (shared.usages > 0)))
            for number, shared in enumerate(form.shared)
        ],
    )


def _table(make: Callable[..., pulp.LpVariable], name: str, exists: NDArray[np.bool_]) -> Table:
    """One variable for each pair of classes that is marked."""
    return {(p, w): make(f"{name}_{p}_{w}", lowBound=0) for p, w in np.argwhere(exists).tolist()}


def _marginals(
    y: Table, end: int, classes: IntArray, x: list[pulp.LpVariable]
) -> Iterator[pulp.LpConstraint]:
    """For each class at one end: the pairs that have it sum to the strategies that have it."""
    sums: dict[int, list[tuple[pulp.LpVariable, int]]] = {}
    for key, variable in y.items():
        sums.setdefault(key[end], []).append((variable, 1))
    for strategy, c in enumerate(classes.tolist()):
        sums.setdefault(c, []).append((x[strategy], -1))
    for terms in sums.values():
        yield pulp.LpAffineExpression(terms) == 0


def _weighted(weights: Iterable[float], variables: list[pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression(
        (variable, float(weight)) for weight, variable in zip(weights, variables, strict=True) if weight
    )


class _SilentHighs(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS on a model that prints no banner."""

    def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 (PuLP's own name)
        lp.solverModel = new_highs(time_limit_s=self.timeLimit, gap=self.gapRel)


def _run(
    model: pulp.LpProblem,
    variables: Variables,
    *,
    scale: float,
    time_limit_s: float,
    gap: float,
    start_s: float,
) -> Solution:
    """Solve the model and read its picks, bound and status."""
    runs_highs = has_highs()
    method = "ilp (pulp, highs)" if runs_highs else "ilp (pulp, cbc)"
    command = _SilentHighs if runs_highs else pulp.PULP_CBC_CMD
    model.solve(command(msg=False, timeLimit=time_limit_s, gapRel=gap))
    bound = float(model.solverModel.getInfo().mip_dual_bound) / scale if runs_highs else -math.inf
    wall_s = time.perf_counter() - start_s
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        if model.status == pulp.LpStatusInfeasible:
            return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, method)
        return Solution(Status.timed_out, None, math.inf, bound, wall_s, method)
    cost = float(pulp.value(model.objective) or 0.0) / scale
    is_proven = model.sol_status == pulp.LpSolutionOptimal
    if not runs_highs and is_proven:
        bound = cost - gap * abs(cost)  # CBC tells no bound, but stops at the gap
    picks = tuple(int(np.argmax([variable.value() for variable in x])) for x in variables.x)
    status = Status.optimal if is_proven else Status.feasible
    return Solution(status, picks, cost, min(cost, bound), wall_s, method)
