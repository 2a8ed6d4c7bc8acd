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
from solver.ilp import ilp_terms, solve_by_ilp
from solver.mixing import mixed
from solver.normal_form import NormalForm, restricted
from solver.presolve import presolve
from solver.pricing import least_sum
from solver.solution import Solution
from solver.usage_prices import Priced, solve_by_prices
from solver.wide import solve_wide

__all__ = ["solve_form"]

PRESOLVE_SHARE = 0.5
PRICES_SHARE = 0.25
"""Shares of the time left that these steps may take."""

MIX_SHARE = 0.05
"""Share of the time left for combining the picks found on the way."""

LARGE_TERMS = 50_000
"""Integer programs up to this size are solved as they are."""

WORTHWHILE = 0.9
"""Go round once more when no more than this share of the strategies remains."""


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
        return _whole(form, None, end_s=end_s, gap=gap)
    best = priced.solution
    if not form.room.size or _is_settled(best, gap, cutoff):
        return best
    mix_end_s = time.perf_counter() + MIX_SHARE * _left_s(end_s)
    best = _cheaper(best, mixed(form, priced.found, end_s=mix_end_s, gap=gap), gap)
    if not is_exact and best.choice is not None:
        return best
    keep = _useful(form, priced, min(best.cost, cutoff))
    if _share(keep) > WORTHWHILE:
        rest = _whole(form, best.choice, end_s=end_s, gap=gap)
    else:
        rest = solve_form(restricted(form, keep), end_s=end_s, gap=gap, cutoff=min(best.cost, cutoff))
    dropped_bound = min(best.cost, cutoff) if _share(keep) <= WORTHWHILE else math.inf
    found = _cheaper(best, rest, gap)
    lower_bound = max(best.lower_bound, min(rest.lower_bound, dropped_bound))
    return Solution.of(found.choice, found.cost, lower_bound, gap=gap, method=rest.method)


def _whole(form: NormalForm, start: tuple[int, ...] | None, *, end_s: float, gap: float) -> Solution:
    """What no prices can make smaller, by what suits its size."""
    if ilp_terms(form) <= LARGE_TERMS or not has_highs():
        return solve_by_ilp(form, start, end_s=end_s, gap=gap)
    return solve_wide(form, end_s=end_s, gap=gap, start=start)


def _is_settled(found: Solution, gap: float, cutoff: float) -> bool:
    """True when nothing below the best cost known can be found any more."""
    known = min(found.cost, cutoff)
    if known == math.inf:
        return found.lower_bound == math.inf
    return known - found.lower_bound <= gap * abs(known)


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


def _left_s(end_s: float) -> float:
    return max(0.0, end_s - time.perf_counter())
