"""Problems too wide for elimination and too large for an integer program: bound and choice approach each other.

Messages raise the bound and suggest choices; their parts are mixed into one that fits, which is then improved
neighbourhood by neighbourhood. What only dearer choices contain is dropped, and the rest goes round again. When
nothing more can be dropped an integer program takes over where it is small enough, neighbourhoods where not.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from solver.ilp import ilp_terms, solve_by_ilp
from solver.improvement import improved
from solver.local_search import solve_by_local_search
from solver.message_passing import Messages, raised_bound
from solver.mixing import mixed
from solver.normal_form import NormalForm
from solver.presolve import Presolved, presolve
from solver.pricing import fits, picks_cost
from solver.problem import FloatArray
from solver.solution import Solution

__all__ = ["solve_wide"]

METHOD = "messages and neighbourhoods"

MESSAGES_SHARE, MIX_SHARE, SEARCH_SHARE = 0.2, 0.15, 0.2
"""Shares of the time left for the bound, for mixing, and for a search where mixing found nothing."""

STALL_SHARE = 0.1
"""Share of the time left in which improvement must have found something."""

ILP_SHARE = 0.92
"""Share of the time left for an integer program: HiGHS looks at the clock between steps only."""

WORTHWHILE = 0.95
"""Go round once more when no more than this share of the strategies remains."""

SMALL_TERMS = 20_000
"""Integer programs up to this size are solved at once."""

ILP_S_PER_TERM = 1e-4
"""Time below which HiGHS tells nothing: measured, 360,000 terms took 40 s to their first bound on one core."""

MIX_GAP = 1e-3

Picks = tuple[int, ...]


def solve_wide(
    form: NormalForm, *, end_s: float, gap: float, start: Picks | None = None, cutoff: float = math.inf
) -> Solution:
    """The best picks, ready at ``end_s`` on the ``perf_counter`` clock; ``start`` are picks that are good in parts.

    Choices that are not below ``cutoff`` need not be found, and the lower bound may be as low as that.
    """
    known = min(cutoff, _cost(form, start) if start and fits(form, start) else math.inf)
    messages = raised_bound(form, end_s=_share_s(end_s, MESSAGES_SHARE), cost=known, gap=gap)
    picks = _first(form, messages, start, end_s=end_s)
    is_near = _is_near(messages.bound, _cost(form, picks), gap)
    if picks is not None and not is_near and ilp_terms(form) > SMALL_TERMS:
        stall_s = STALL_SHARE * _left_s(end_s)
        picks = improved(form, picks, guide=messages.moved(form), end_s=end_s, stall_s=stall_s)
    best = Solution.of(picks, _cost(form, picks), messages.bound, gap=gap, method=METHOD)
    known = min(known, best.cost)
    if _is_near(messages.bound, known, gap) or not _left_s(end_s):
        return best
    reduced = presolve(messages.below(form, known), time_limit_s=_left_s(end_s))
    if reduced is None:
        return Solution.of(picks, best.cost, known, gap=gap, method=METHOD)
    rest = _rest(form, reduced, messages, picks, end_s=end_s, gap=gap, known=known)
    found = rest if rest.cost < best.cost else best
    lower_bound = max(best.lower_bound, min(rest.lower_bound, known))
    return Solution.of(found.choice, found.cost, lower_bound, gap=gap, method=found.method)


def _rest(
    form: NormalForm,
    reduced: Presolved,
    messages: Messages,
    picks: Picks | None,
    *,
    end_s: float,
    gap: float,
    known: float,
) -> Solution:
    """What is left after dropping, solved by what suits its size."""
    terms = ilp_terms(reduced.form)
    has_shrunk = _strategies(reduced.form) <= WORTHWHILE * _strategies(form)
    if has_shrunk and terms > SMALL_TERMS:
        start = None if picks is None else reduced.picks(picks)
        found = solve_wide(reduced.form, end_s=end_s, gap=gap, start=start, cutoff=known)
    elif terms * ILP_S_PER_TERM <= _left_s(end_s) or terms <= SMALL_TERMS or picks is None:
        found = solve_by_ilp(reduced.form, None, end_s=_share_s(end_s, ILP_SHARE), gap=gap)
    else:
        picks = improved(form, picks, guide=messages.moved(form), end_s=end_s)
        return Solution.of(picks, _cost(form, picks), messages.bound, gap=gap, method=METHOD)
    return found if found.choice is None else replace(found, choice=reduced.choice(found.choice))


def _first(form: NormalForm, messages: Messages, start: Picks | None, *, end_s: float) -> Picks | None:
    """The cheapest picks that fit and can be mixed from those known and those that hold least; or found."""
    known = [*messages.found, _leanest(form), *([] if start is None else [start])]
    mix = mixed(form, known, end_s=_share_s(end_s, MIX_SHARE), gap=MIX_GAP)
    fitting = [picks for picks in known if fits(form, picks)]
    fitting += [] if mix.choice is None else [mix.choice]
    best = min(fitting, key=lambda picks: _cost(form, picks), default=None)
    if best is None or not math.isfinite(_cost(form, best)):
        return solve_by_local_search(form, time_limit_s=SEARCH_SHARE * _left_s(end_s), start=_leanest(form))
    return best


def _leanest(form: NormalForm) -> Picks:
    """The pick of each node that holds least over time, of equal ones the cheapest."""

    def held(node: int) -> FloatArray:
        load = form.loads[node]
        return (load.ends - load.starts) @ load.usages if load else np.zeros(form.costs[node].size)

    return tuple(int(np.lexsort((costs, held(node)))[0]) for node, costs in enumerate(form.costs))


def _cost(form: NormalForm, picks: Picks | None) -> float:
    return math.inf if picks is None else picks_cost(form, picks)


def _is_near(bound: float, cost: float, gap: float) -> bool:
    """True when nothing cheaper is left to find."""
    return cost < math.inf and cost - bound <= gap * abs(cost)


def _strategies(form: NormalForm) -> int:
    return sum(costs.size for costs in form.costs)


def _share_s(end_s: float, share: float) -> float:
    """The moment at which a share of the time left is over."""
    return time.perf_counter() + share * _left_s(end_s)


def _left_s(end_s: float) -> float:
    return max(0.0, end_s - time.perf_counter())
