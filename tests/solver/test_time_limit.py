"""The time limit is kept, and running out of time is never called infeasible."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from solver import Edge, Node, Problem, Status, evaluate, smallest_usage, solve
from solver.normal_form import normal_form
from solver.sparse_ilp import solve_by_sparse_ilp

SLACK_S = 3.0
"""HiGHS looks at the clock between steps only."""


def dense_problem(nodes: int, strategies: int, seed: int = 0) -> Problem:
    """Every pair of nodes has an edge of random prices, and usage binds: hard for every method."""
    rng = np.random.default_rng(seed)
    own = tuple(Node(rng.random(strategies), rng.random(strategies)) for _ in range(nodes))
    edges = tuple(
        Edge((i, j), rng.random((strategies, strategies))) for i in range(nodes) for j in range(i + 1, nodes)
    )
    return Problem(own, edges, usage_limit=0.3 * nodes)


@pytest.mark.parametrize("time_limit_s", [0.05, 2.0])
def test_a_hard_problem_ends_in_time_with_a_choice_and_a_bound(time_limit_s: float) -> None:
    problem = dense_problem(30, 12)
    start_s = time.perf_counter()
    found = solve(problem, time_limit_s=time_limit_s)
    assert time.perf_counter() - start_s < time_limit_s + SLACK_S
    assert found.status in (Status.feasible, Status.timed_out)
    if found.choice is not None:
        assert -math.inf < found.lower_bound < found.cost
        assert evaluate(problem, found.choice).fits(problem.usage_limit)


def test_out_of_time_without_a_choice_is_not_infeasible() -> None:
    form = normal_form(dense_problem(30, 12))
    assert solve_by_sparse_ilp(form, time_limit_s=0.01, gap=1e-6).status is Status.timed_out


def test_infeasible_is_proven() -> None:
    problem = dense_problem(4, 3)
    least = evaluate(problem, smallest_usage(problem).choice).peak_usage
    assert solve(replace(problem, usage_limit=least * 0.999)).status is Status.infeasible
    assert solve(replace(problem, usage_limit=least)).status is Status.optimal


def test_a_wider_gap_is_honoured_and_reported() -> None:
    found = solve(dense_problem(9, 6), gap=0.2)
    assert found.status is Status.optimal
    assert found.gap <= 0.2
