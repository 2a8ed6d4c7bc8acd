"""Which method solves a problem, and the check that every answer passes."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from solver.local_search import solve_by_local_search
from solver.narrowing import solve_form
from solver.normal_form import normal_form
from solver.presolve import presolve
from solver.pricing import picks_cost
from solver.problem import Edge, FloatArray, Problem, evaluate
from solver.solution import Solution, Status
from solver.sparse_ilp import smallest_peak

__all__ = ["smallest_usage", "solve"]

LAST_RESORT_SHARE = 0.05
"""Share of the time beyond the limit for a local search when the ILP has found nothing."""

COST_TOLERANCE = 1e-6
"""Largest relative difference between a method's objective and the cost summed again from the choice."""


def solve(
    problem: Problem, *, time_limit_s: float = 60.0, gap: float = 1e-6, is_exact: bool = True
) -> Solution:
    """The cheapest choice that fits, with a lower bound.

    ``optimal`` when proven to the relative ``gap``; ``feasible`` when the time ran out first; ``timed_out``
    when it ran out before any choice was found, which says nothing about whether one exists. Without
    ``is_exact`` the best choice that prices on usage lead to is good enough, whatever its gap.
    """
    start_s = time.perf_counter()
    found = solve_form(normal_form(problem), end_s=start_s + time_limit_s, gap=gap, is_exact=is_exact)
    if found.status is Status.timed_out and (reduced := presolve(normal_form(problem), time_limit_s=0)):
        picks = solve_by_local_search(reduced.form, time_limit_s=LAST_RESORT_SHARE * time_limit_s)
        if picks is not None:
            cost, choice = picks_cost(reduced.form, picks), reduced.choice(picks)
            found = Solution.of(choice, cost, found.lower_bound, gap=gap, method="local search")
    found = replace(found, wall_s=time.perf_counter() - start_s)
    return found if found.choice is None else _checked(problem, found)


def smallest_usage(problem: Problem, *, time_limit_s: float = 60.0, gap: float = 1e-6) -> Solution:
    """A choice of least peak usage among those that are not forbidden, whatever the limit.

    ``cost`` is its price in the problem (no cheaper one of the same usage was looked for, so ``lower_bound``
    is -inf); ``evaluate(problem, solution.choice).peak_usage`` is the usage reached.
    """
    start_s = time.perf_counter()
    limited = replace(problem, usage_limit=max(1.0, sum(float(n.usages.max()) for n in problem.nodes)))
    form = normal_form(limited)
    if form.room.size <= 1:
        found = solve(_usage_as_cost(problem), time_limit_s=time_limit_s, gap=gap)
    elif any(costs.size == 0 for costs in form.costs):
        found = Solution(Status.infeasible, None, math.inf, math.inf, 0.0, "presolve")
    else:
        found = smallest_peak(form, time_limit_s=time_limit_s, gap=gap)
        found = replace(found, choice=None if found.choice is None else form.choice(found.choice))
    wall_s = time.perf_counter() - start_s
    if found.choice is None:
        return replace(found, wall_s=wall_s)
    return replace(found, cost=evaluate(problem, found.choice).cost, lower_bound=-math.inf, wall_s=wall_s)


def _usage_as_cost(problem: Problem) -> Problem:
    """The problem whose cost is the usage, where all that is ever live is live at one time."""
    return Problem(
        nodes=tuple(
            replace(n, costs=_allowed(n.costs) + _live(n.interval) * n.usages) for n in problem.nodes
        ),
        edges=tuple(Edge(e.nodes, _allowed(e.costs)) for e in problem.edges),
        fans=tuple(replace(f, costs=_allowed(f.costs) + _live(f.interval) * f.usages) for f in problem.fans),
    )


def _live(interval: tuple[int, int]) -> float:
    return 1.0 if interval[0] < interval[1] else 0.0


def _allowed(costs: FloatArray) -> FloatArray:
    """0 where a cost is finite, inf where it is forbidden."""
    return np.where(np.isfinite(costs), 0.0, np.inf)


def _checked(problem: Problem, found: Solution) -> Solution:
    """The solution with its cost summed again from the problem and the choice alone."""
    assert found.choice is not None
    price = evaluate(problem, found.choice)
    size = max(abs(price.cost), abs(found.cost))
    assert math.isfinite(price.cost), f"{found.method} chose a forbidden strategy"
    assert abs(price.cost - found.cost) <= COST_TOLERANCE * size + 1e-300, (price.cost, found)
    assert price.fits(problem.usage_limit), (price.peak_usage, problem.usage_limit, found)
    return replace(found, cost=price.cost, lower_bound=min(found.lower_bound, price.cost))
