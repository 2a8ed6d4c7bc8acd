"""The oracle for tiny problems: every choice is priced by ``evaluate``."""

from __future__ import annotations

import itertools
import math
import time

from solver.problem import Problem, evaluate
from solver.solution import Solution, Status

__all__ = ["MAX_CHOICES", "solve_by_enumeration"]

MAX_CHOICES = 2_000_000


def solve_by_enumeration(problem: Problem) -> Solution:
    """The cheapest choice that fits, found by trying all; at most ``MAX_CHOICES`` of them."""
    choices = math.prod(node.costs.size for node in problem.nodes)
    if choices > MAX_CHOICES:
        raise ValueError(f"{choices} choices are too many to enumerate (limit {MAX_CHOICES}).")
    start_s = time.perf_counter()
    best_cost, best = math.inf, None
    for choice in itertools.product(*(range(node.costs.size) for node in problem.nodes)):
        price = evaluate(problem, choice)
        if price.cost < best_cost and price.fits(problem.usage_limit):
            best_cost, best = price.cost, choice
    status = Status.infeasible if best is None else Status.optimal
    wall_s = time.perf_counter() - start_s
    return Solution(status, best, best_cost, best_cost, wall_s, "exhaustive")
