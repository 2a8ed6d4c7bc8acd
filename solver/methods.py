"""Which method solves a problem, and the check that every answer passes."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from solver.normal_form import normal_form
from solver.planning_ilp import solve_by_pulp
from solver.presolve import presolve
from solver.problem import Edge, FloatArray, Problem, evaluate
from solver.solution import Solution, Status

__all__ = ["smallest_usage", "solve"]

COST_TOLERANCE = 1e-6
"""Largest relative difference between a method's objective and the cost summed again from the choice."""


def solve(problem: Problem, *, time_limit_s: float = 60.0, gap: float = 1e-6) -> Solution:
    """The cheapest choice that fits, with a lower bound.

    ``optimal`` when proven to the relative ``gap``; ``feasible`` when the time ran out first; ``timed_out``
    when it ran out before any choice was found, which says nothing about whether one exists.
    """
    start_s = time.perf_counter()
    reduced = presolve(normal_form(problem), time_limit_s=time_limit_s / 4)
    if reduced is None:
        wall_s = time.perf_counter() - start_s
        return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, "presolve")
    left_s = time_limit_s - (time.perf_counter() - start_s)
    found = solve_by_pulp(reduced.form, time_limit_s=left_s, gap=gap)
    found = replace(
        found,
        choice=None if found.choice is None else reduced.choice(found.choice),
        cost=found.cost + reduced.constant,
        lower_bound=found.lower_bound + reduced.constant,
        wall_s=time.perf_counter() - start_s,
    )
    return found if found.choice is None else _checked(problem, found)


def smallest_usage(problem: Problem, *, time_limit_s: float = 60.0, gap: float = 1e-6) -> Solution:
    """A choice of least peak usage among those that are not forbidden, whatever the limit.

    ``cost`` is its price in the problem, ``lower_bound`` no bound on usage but the same price's trivial one;
    ``evaluate(problem, solution.choice).peak_usage`` is the usage reached.
    """
    found = solve(_usage_as_cost(problem), time_limit_s=time_limit_s, gap=gap)
    if found.choice is None:
        return found
    return replace(found, cost=evaluate(problem, found.choice).cost, lower_bound=-math.inf)


def _usage_as_cost(problem: Problem) -> Problem:
    """The problem whose cost is the usage, for problems where everything lives at the same time."""
    return Problem(
        nodes=tuple(replace(n, costs=_allowed(n.costs) + n.usages) for n in problem.nodes),
        edges=tuple(Edge(e.nodes, _allowed(e.costs)) for e in problem.edges),
        fans=tuple(replace(f, costs=_allowed(f.costs) + f.usages) for f in problem.fans),
    )


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
