"""One problem after the other, each smaller: what cannot be part of a cheaper choice is dropped.

Prices on usage bound the cost of every choice that uses a given strategy (its min-marginal). A strategy whose
bound is not below the best cost known is dropped, and what remains is presolved and priced again. The ILP
takes over when nothing more can be dropped, or at once where the graph is too wide for elimination.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solver.highs import has_highs
from solver.normal_form import NormalForm, restricted
from solver.planning_ilp import solve_by_pulp
from solver.presolve import presolve
from solver.pricing import least_sum
from solver.solution import Solution
from solver.sparse_ilp import solve_by_sparse_ilp
from solver.usage_prices import Priced, solve_by_prices

__all__ = ["solve_form"]

PRESOLVE_SHARE = 0.5
PRICES_SHARE = 0.25
"""Shares of the time left that these steps may take."""

MIX_SHARE = 0.05
"""Share of the time left for combining the picks found on the way."""

WORTHWHILE = 0.9
"""Go round once more when no more than this share of the strategies remains."""

PULP_TERMS = 20_000
"""Terms that PuLP spells out in about 0.2 s."""


def solve_form(
    form: NormalForm, *, end_s: float, gap: float, cutoff: float = math.inf, is_exact: bool = True
) -> Solution:
    """The best picks, ready at ``end_s`` on the ``perf_counter`` clock.

    Choices that are not below ``cutoff`` need not be found, and the lower bound may be as low as that. Unless
    ``is_exact``, the first picks that fit end the search.
    """
    reduced = presolve(form, time_limit_s=PRESOLVE_SHARE * _left_s(end_s))
    if reduced is None:
        return Solution.of(None, math.inf, math.inf, gap=gap, method="presolve")
    found = _solve_reduced(reduced.form, end_s=end_s, gap=gap, cutoff=cutoff, is_exact=is_exact)
    found = replace(found, lower_bound=max(found.lower_bound, min(found.cost, least_sum(reduced.form))))
    return found if found.choice is None else replace(found, choice=reduced.choice(found.choice))


def _solve_reduced(form: NormalForm, *, end_s: float, gap: float, cutoff: float, is_exact: bool) -> Solution:
    """The same for a form that presolve has been through."""
    if not form.costs:
        return Solution.of((), form.constant, form.constant, gap=gap, method="presolve")
    priced = solve_by_prices(form, time_limit_s=PRICES_SHARE * _left_s(end_s), gap=gap)
    if priced is None:
        return _by_ilp(form, None, end_s=end_s, gap=gap)
    best = priced.solution
    if not form.room.size or _is_settled(best, gap, cutoff):
        return best
    best = _cheaper(best, _mixed(form, priced, end_s=end_s, gap=gap), gap)
    if not is_exact and best.choice is not None:
        return best
    keep = _useful(form, priced, min(best.cost, cutoff))
    if _share(keep) > WORTHWHILE:
        rest = _by_ilp(form, best.choice, end_s=end_s, gap=gap)
    else:
        rest = solve_form(restricted(form, keep), end_s=end_s, gap=gap, cutoff=min(best.cost, cutoff))
    dropped_bound = min(best.cost, cutoff) if _share(keep) <= WORTHWHILE else math.inf
    found = _cheaper(best, rest, gap)
    lower_bound = max(best.lower_bound, min(rest.lower_bound, dropped_bound))
    return Solution.of(found.choice, found.cost, lower_bound, gap=gap, method=rest.method)


def _is_settled(found: Solution, gap: float, cutoff: float) -> bool:
    """True when nothing below the best cost known can be found any more."""
    known = min(found.cost, cutoff)
    if known == math.inf:
        return found.lower_bound == math.inf
    return known - found.lower_bound <= gap * abs(known)


def _mixed(form: NormalForm, priced: Priced, *, end_s: float, gap: float) -> Solution:
    """The best picks out of the strategies that the picks found so far use: a small ILP."""
    keep = [np.zeros(costs.size, dtype=bool) for costs in form.costs]
    for picks in priced.found:
        for marked, pick in zip(keep, picks, strict=True):
            marked[pick] = True
    reduced = presolve(restricted(form, keep))
    if reduced is None:
        return Solution.of(None, math.inf, math.inf, gap=gap, method="ilp")
    until_s = time.perf_counter() + MIX_SHARE * _left_s(end_s)
    found = _by_ilp(reduced.form, None, end_s=until_s, gap=gap)
    return found if found.choice is None else replace(found, choice=reduced.choice(found.choice))


def _useful(form: NormalForm, priced: Priced, known: float) -> list[NDArray[np.bool_]]:
    """Marks the strategies that a choice below the best cost known may use."""
    marginals = priced.elimination.min_marginals() if math.isfinite(known) else None
    if marginals is None:
        return [np.ones(costs.size, dtype=bool) for costs in form.costs]
    paid = float(priced.prices @ form.room)
    return [least - paid < known for least in marginals]


def _share(keep: list[NDArray[np.bool_]]) -> float:
    return float(sum(marked.sum() for marked in keep) / sum(marked.size for marked in keep))


def _cheaper(one: Solution, other: Solution, gap: float) -> Solution:
    """The cheaper of two choices, with the first one's bound."""
    found = other if other.cost < one.cost else one
    return Solution.of(found.choice, found.cost, one.lower_bound, gap=gap, method=found.method)


def _by_ilp(form: NormalForm, start: tuple[int, ...] | None, *, end_s: float, gap: float) -> Solution:
    """PuLP states what it can spell out at once; larger models go to HiGHS as arrays."""
    if not form.costs:
        return Solution.of((), form.constant, form.constant, gap=gap, method="presolve")
    terms = sum(costs.size for costs in form.costs) + sum(2 * pair.costs.size for pair in form.pairs)
    terms += sum(3 * len(shared.consumers) * shared.costs.size for shared in form.shared)
    terms += sum(int((load.ends - load.starts) @ (load.usages > 0).sum(axis=1)) for load in form.loads)
    if terms <= PULP_TERMS or not has_highs():
        return solve_by_pulp(form, time_limit_s=_left_s(end_s), gap=gap)
    return solve_by_sparse_ilp(form, time_limit_s=_left_s(end_s), gap=gap, start=start)


def _left_s(end_s: float) -> float:
    return max(0.0, end_s - time.perf_counter())
