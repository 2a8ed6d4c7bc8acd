"""A choice is priced from the problem alone, and what is no problem cannot be built."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solver import Edge, Fan, InvalidProblemError, Node, Problem, Solution, Status, evaluate
from solver.normal_form import normal_form
from solver.pricing import fits, picks_cost, usage_by_time
from tests.solver.random_problems import random_problem

TWO = Node([1.0, 2.0], [0.0, 0.0])


def fan(**changes: object) -> Fan:
    """Node 0 makes class 0 or 1; nodes 1 and 2 want what their strategy says."""
    fields: dict[str, object] = {
        "producer": 0,
        "consumers": (1, 2),
        "produced": [0, 1],
        "wanted": ([0, 1], [0, 1]),
        "costs": [[0.0, 10.0], [20.0, 0.0]],
        "usages": [3.0, 5.0],
    }
    return Fan(**(fields | changes))


def test_a_version_is_paid_and_held_once_however_many_want_it() -> None:
    problem = Problem((TWO, TWO, TWO), fans=(fan(),))
    shared, distinct = evaluate(problem, (0, 1, 1)), evaluate(problem, (0, 0, 1))
    assert (shared.cost, shared.peak_usage) == (1 + 2 + 2 + 10, 5)
    assert (distinct.cost, distinct.peak_usage) == (1 + 1 + 2 + 0 + 10, 3 + 5)


def test_a_node_may_produce_and_consume_and_occur_twice() -> None:
    problem = Problem((TWO, TWO), fans=(fan(consumers=(0, 1, 1), wanted=([1, 1], [0, 1], [0, 0])),))
    assert evaluate(problem, (0, 0)).cost == 1 + 1 + 10 + 0
    assert evaluate(problem, (1, 1)).cost == 2 + 2 + 0 + 20


def test_usage_peaks_where_half_open_intervals_overlap() -> None:
    nodes = tuple(
        Node([0.0], [usage], interval) for usage, interval in ((2, (0, 4)), (3, (4, 9)), (4, (3, 4)))
    )
    assert evaluate(Problem(nodes), (0, 0, 0)).peak_usage == 6
    assert evaluate(Problem((Node([0.0], [7.0], (5, 5)),)), (0,)).peak_usage == 0


def test_a_forbidden_strategy_or_pair_costs_infinity() -> None:
    problem = Problem(
        (TWO, Node([1.0, math.inf], [0.0, 0.0])), (Edge((0, 1), [[math.inf, 0.0], [0.0, 0.0]]),)
    )
    assert evaluate(problem, (0, 0)).cost == math.inf
    assert evaluate(problem, (1, 1)).cost == math.inf
    assert evaluate(problem, (1, 0)).cost == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Node([], [], name="mm"), "node 'mm' has no strategy"),
        (lambda: Node([1.0], [1.0, 2.0], name="mm"), "node 'mm': 1 costs but 2 usages"),
        (lambda: Node([math.nan], [0.0], name="mm"), "node 'mm': costs hold a NaN"),
        (lambda: Node([1.0], [-1.0], name="mm"), "node 'mm': usages must be finite and at least 0: -1.0"),
        (lambda: Node([[1.0]], [1.0]), "must have 1 dimensions, not 2"),
        (lambda: Edge((1, 1), [[0.0]]), r"edge \(1, 1\) joins a node with itself"),
        (lambda: fan(costs=[[-1.0, 0.0], [0.0, 0.0]]), "a conversion costs -1.0, below 0"),
        (lambda: fan(wanted=([0, 1], [0, 2])), "wanted by node 2: classes 0 to 2, but there are 2"),
        (lambda: fan(wanted=([0, 1],)), "2 consumers, 1 wanted"),
        (lambda: fan(usages=[1.0]), "2 wanted classes but 1 usages"),
        (lambda: Problem((TWO, TWO), (Edge((0, 1), np.zeros((2, 3))),)), r"shape \(2, 3\).* \(2, 2\)"),
        (lambda: Problem((TWO,), (Edge((0, 4), np.zeros((2, 3))),)), "names node 4, but there are 1 nodes"),
        (
            lambda: Problem((TWO, TWO, Node([1.0], [0.0], name="v")), fans=(fan(),)),
            "2 classes for the 1 .* 'v'",
        ),
        (lambda: Problem((TWO,), usage_limit=-1.0), "usage_limit is -1.0"),
        (lambda: evaluate(Problem((TWO,)), (0, 1)), "2 strategies chosen for 1 nodes"),
    ],
)
def test_bad_numbers_are_named(build: object, message: str) -> None:
    with pytest.raises(InvalidProblemError, match=message):
        build()


def test_the_normal_form_prices_every_choice_as_the_problem_does() -> None:
    for seed in range(60):
        problem = random_problem(seed)
        form = normal_form(problem)
        random = np.random.default_rng(seed)
        if any(costs.size == 0 for costs in form.costs):
            continue
        for _ in range(20):
            picks = tuple(int(random.integers(costs.size)) for costs in form.costs)
            price = evaluate(problem, form.choice(picks))
            assert picks_cost(form, picks) == pytest.approx(price.cost)
            assert usage_by_time(form, picks).max(initial=0.0) <= price.peak_usage * (1 + 1e-12)
            assert fits(form, picks) == price.fits(problem.usage_limit)


def test_a_gap_is_relative_to_the_cost() -> None:
    assert Solution(Status.feasible, (0,), 10.0, 9.0, 0.0, "").gap == pytest.approx(0.1)
    assert Solution(Status.optimal, (0,), 0.0, 0.0, 0.0, "").gap == 0.0
    assert Solution(Status.timed_out, None, math.inf, 3.0, 0.0, "").gap == math.inf
