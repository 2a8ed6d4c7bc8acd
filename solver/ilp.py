"""The integer program of a normal form, stated by PuLP where it is small and as arrays where it is not."""

from __future__ import annotations

import time

from solver.highs import has_highs
from solver.normal_form import NormalForm
from solver.planning_ilp import solve_by_pulp
from solver.solution import Solution
from solver.sparse_ilp import solve_by_sparse_ilp

__all__ = ["ilp_terms", "solve_by_ilp"]

PULP_TERMS = 20_000
"""Terms that PuLP spells out in about 0.2 s."""


def solve_by_ilp(form: NormalForm, start: tuple[int, ...] | None, *, end_s: float, gap: float) -> Solution:
    """The best picks, ready at ``end_s`` on the ``perf_counter`` clock; ``start`` are picks to begin from."""
    if not form.costs:
        return Solution.of((), form.constant, form.constant, gap=gap, method="presolve")
    if ilp_terms(form) <= PULP_TERMS or not has_highs():
        return solve_by_pulp(form, time_limit_s=_left_s(end_s), gap=gap)
    return solve_by_sparse_ilp(form, time_limit_s=_left_s(end_s), gap=gap, start=start)


def ilp_terms(form: NormalForm) -> int:
    """Size of the integer program: how many coefficients its constraints have."""
    terms = sum(costs.size for costs in form.costs) + sum(2 * pair.costs.size for pair in form.pairs)
    terms += sum(3 * len(shared.consumers) * shared.costs.size for shared in form.shared)
    return terms + sum(int((load.ends - load.starts) @ (load.usages > 0).sum(axis=1)) for load in form.loads)


def _left_s(end_s: float) -> float:
    return max(0.0, end_s - time.perf_counter())
