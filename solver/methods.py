"""Which method solves a problem, and the check that every answer passes."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from solver.highs import has_highs
from solver.local_search import solve_by_local_search
from solver.normal_form import NormalForm, normal_form
from solver.planning_ilp import solve_by_pulp
from solver.presolve import presolve
from solver.pricing import picks_cost
from solver.problem import Edge, FloatArray, Problem, evaluate
from solver.solution import Solution, Status
from solver.sparse_ilp import smallest_peak, solve_by_sparse_ilp
from solver.usage_prices import Bracket, bracket_by_prices

__all__ = ["smallest_usage", "solve", "solve_form"]

PULP_TERMS = 20_000
"""Terms that PuLP spells out in about 0.2 s."""

BRACKET_SHARE = 0.25
"""Share of the time that may go into prices on usage before the ILP starts."""

LAST_RESORT_SHARE = 0.05
"""Share of the time beyond the limit for a local search when the ILP has found nothing."""

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
    found = solve_form(reduced.form, time_limit_s=left_s, gap=gap)
    found = replace(
        found,
        choice=None if found.choice is None else reduced.choice(found.choice),
        cost=found.cost + reduced.constant,
        lower_bound=found.lower_bound + reduced.constant,
        wall_s=time.perf_counter() - start_s,
    )
    return found if found.choice is None else _checked(problem, found)


def solve_form(form: NormalForm, *, time_limit_s: float, gap: float) -> Solution:
    """The best picks: by elimination where the graph is narrow and usage does not bind, else by the ILP."""
    start_s = time.perf_counter()
    if not form.costs:
        return Solution(Status.optimal, (), 0.0, 0.0, 0.0, "presolve")
    bracket = bracket_by_prices(form, time_limit_s=time_limit_s * BRACKET_SHARE, gap=gap)
    wall_s = time.perf_counter() - start_s
    if bracket is not None and bracket.lower_bound == math.inf:
        return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, "elimination")
    if bracket is not None and bracket.is_proven(gap):
        lower_bound = min(bracket.lower_bound, bracket.cost)
        return Solution(Status.optimal, bracket.picks, bracket.cost, lower_bound, wall_s, "elimination")
    bracket = bracket or Bracket(None, math.inf, -math.inf)
    found = _by_ilp(form, bracket.picks, time_limit_s=time_limit_s - wall_s, gap=gap)
    if found.status is not Status.infeasible:
        found = _best_of(form, found, bracket, gap, time_limit_s=LAST_RESORT_SHARE * time_limit_s)
    return replace(found, wall_s=time.perf_counter() - start_s)


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


def _by_ilp(form: NormalForm, start: tuple[int, ...] | None, *, time_limit_s: float, gap: float) -> Solution:
    """PuLP states what it can spell out at once; larger models go to HiGHS as arrays."""
    terms = sum(costs.size for costs in form.costs) + sum(2 * pair.costs.size for pair in form.pairs)
    terms += sum(3 * len(shared.consumers) * shared.costs.size for shared in form.shared)
    terms += sum(int((load.ends - load.starts) @ (load.usages > 0).sum(axis=1)) for load in form.loads)
    if terms <= PULP_TERMS or not has_highs():
        return solve_by_pulp(form, time_limit_s=time_limit_s, gap=gap)
    return solve_by_sparse_ilp(form, time_limit_s=time_limit_s, gap=gap, start=start)


def _best_of(
    form: NormalForm, found: Solution, bracket: Bracket, gap: float, *, time_limit_s: float
) -> Solution:
    """The ILP's answer with the bracket's candidate and bound; a local search when neither has a choice."""
    picks, cost = found.choice, found.cost
    if bracket.picks is not None and bracket.cost < cost:
        picks, cost = bracket.picks, bracket.cost
    if picks is None:
        picks = solve_by_local_search(form, time_limit_s=time_limit_s)
        cost = math.inf if picks is None else picks_cost(form, picks)
    lower_bound = min(cost, max(found.lower_bound, bracket.lower_bound))
    is_proven = picks is not None and cost - lower_bound <= gap * abs(cost)
    status = Status.timed_out if picks is None else Status.optimal if is_proven else Status.feasible
    return replace(
        found,
        status=found.status if found.status is Status.optimal else status,
        choice=picks,
        cost=cost,
        lower_bound=lower_bound,
    )


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
