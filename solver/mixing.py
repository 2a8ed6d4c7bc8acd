"""The best choice that can be put together from parts of choices found before."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from solver.ilp import solve_by_ilp
from solver.normal_form import NormalForm, restricted
from solver.presolve import presolve
from solver.solution import Solution

__all__ = ["mixed"]


def mixed(form: NormalForm, found: Iterable[tuple[int, ...]], *, end_s: float, gap: float) -> Solution:
    """The best picks out of the strategies that some picks use: a small integer program."""
    keep = [np.zeros(costs.size, dtype=bool) for costs in form.costs]
    for picks in found:
        for marked, pick in zip(keep, picks, strict=True):
            marked[pick] = True
    reduced = presolve(restricted(form, keep), time_limit_s=end_s - time.perf_counter())
    if reduced is None:
        return Solution.of(None, math.inf, math.inf, gap=gap, method="ilp")
    best = solve_by_ilp(reduced.form, None, end_s=end_s, gap=gap)
    return best if best.choice is None else replace(best, choice=reduced.choice(best.choice))
