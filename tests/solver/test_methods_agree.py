"""Every method finds the optimum that enumeration finds, on small random problems."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import Problem, Solution, Status, evaluate, smallest_usage, solve, solve_by_enumeration
from solver.elimination import eliminate, solve_by_elimination
from solver.local_search import solve_by_local_search
from solver.normal_form import normal_form
from solver.planning_ilp import solve_by_pulp
from solver.presolve import presolve
from solver.pricing import fits, picks_cost
from solver.sparse_ilp import solve_by_sparse_ilp
from solver.usage_prices import solve_by_prices
from tests.solver.block_problem import block_problem
from tests.solver.random_problems import random_problem

PROBLEMS = range(300)
"""Half of them with a limit that is likely to bind."""

ILPS = (solve_by_pulp, solve_by_sparse_ilp)


def agree(found: Solution, oracle: Solution) -> bool:
    """Same status and cost, and a bound that is one."""
    if found.status != oracle.status:
        return False
    if found.choice is None:
        return True
    is_bounded = found.lower_bound <= min(found.cost, oracle.cost + 1e-9)
    return is_bounded and math.isclose(found.cost, oracle.cost, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("chunk", range(0, len(PROBLEMS), 50))
def test_solve_equals_enumeration(chunk: int) -> None:
    for seed in PROBLEMS[chunk : chunk + 50]:
        problem = random_problem(seed)
        found, oracle = solve(problem), solve_by_enumeration(problem)
        assert agree(found, oracle), (seed, found, oracle)
        if found.choice is not None:
            price = evaluate(problem, found.choice)
            assert price.cost == found.cost
            assert price.fits(problem.usage_limit)


@pytest.mark.parametrize("ilp", ILPS)
@pytest.mark.parametrize("presolve_s", [None, 0.0, math.inf])
def test_both_ilps_equal_enumeration_after_no_some_and_all_of_presolve(ilp, presolve_s: float | None) -> None:
    for seed in PROBLEMS[:200]:
        problem = random_problem(seed)
        oracle = solve_by_enumeration(problem)
        form = normal_form(problem)
        if presolve_s is not None:
            reduced = presolve(form, time_limit_s=presolve_s)
            if reduced is None:
                assert oracle.status is Status.infeasible, seed
                continue
            form = reduced.form
        if form.costs and all(costs.size for costs in form.costs):
            found = ilp(form, time_limit_s=20, gap=1e-6)
            assert agree(found, oracle), (seed, found, oracle)


def test_elimination_equals_enumeration_where_nothing_is_limited() -> None:
    solved = 0
    for seed in PROBLEMS:
        problem = replace(random_problem(seed), usage_limit=math.inf)
        form = normal_form(problem)
        if all(costs.size for costs in form.costs):
            found = solve_by_elimination(form)
            assert agree(found, solve_by_enumeration(problem)), seed
            solved += found.choice is not None
    assert solved >= 200


def test_min_marginals_equal_enumeration() -> None:
    for seed in PROBLEMS[:100]:
        form = normal_form(replace(random_problem(seed), usage_limit=math.inf))
        if not all(costs.size for costs in form.costs):
            continue
        least = [np.full(costs.size, math.inf) for costs in form.costs]
        for picks in itertools.product(*(range(costs.size) for costs in form.costs)):
            cost = picks_cost(form, picks)
            for own, pick in zip(least, picks, strict=True):
                own[pick] = min(own[pick], cost)
        elimination = eliminate(form)
        if math.isfinite(elimination.cost):
            for own, marginals in zip(least, elimination.min_marginals(), strict=True):
                np.testing.assert_allclose(marginals, own, atol=1e-9, err_msg=str(seed))


def test_dropping_strategies_keeps_the_optimum_of_a_block_that_must_save_memory() -> None:
    problem = block_problem((8, 8))
    most = evaluate(problem, solve(problem).choice).peak_usage
    least = evaluate(problem, smallest_usage(problem).choice).peak_usage
    tight = replace(problem, usage_limit=least + 0.3 * (most - least))
    stated = solve_by_sparse_ilp(normal_form(tight), time_limit_s=60, gap=1e-6)
    assert solve(tight).cost == pytest.approx(stated.cost, rel=1e-6)


def test_presolve_translates_every_pick_at_its_price() -> None:
    for seed in PROBLEMS:
        problem = random_problem(seed)
        reduced = presolve(normal_form(problem))
        if reduced is None:
            continue
        for picks in itertools.islice(itertools.product(*(range(c.size) for c in reduced.form.costs)), 50):
            cost = picks_cost(reduced.form, picks)
            price = evaluate(problem, reduced.choice(picks))
            assert not math.isfinite(cost) or math.isclose(cost, price.cost, abs_tol=1e-9), seed
            assert not fits(reduced.form, picks) or price.fits(problem.usage_limit), seed


def test_prices_on_usage_bracket_the_optimum_and_local_search_fits() -> None:
    for seed in PROBLEMS[:200]:
        problem = random_problem(seed)
        oracle, reduced = solve_by_enumeration(problem), presolve(normal_form(problem))
        if reduced is None or not reduced.form.costs:
            continue
        bracket = solve_by_prices(reduced.form, time_limit_s=20, gap=1e-6).solution
        assert bracket.lower_bound <= oracle.cost + 1e-9, seed
        assert bracket.cost >= oracle.cost - 1e-9, seed
        picks = solve_by_local_search(reduced.form, time_limit_s=0.01)
        assert picks is None or fits(reduced.form, picks), seed
        assert picks is None or picks_cost(reduced.form, picks) >= oracle.cost - 1e-9, seed


def test_smallest_usage_equals_enumeration() -> None:
    for seed in PROBLEMS[:120]:
        problem = random_problem(seed)
        choices = itertools.product(*(range(node.costs.size) for node in problem.nodes))
        prices = [price for price in (evaluate(problem, c) for c in choices) if math.isfinite(price.cost)]
        found = smallest_usage(problem)
        if not prices:
            assert found.status is Status.infeasible, seed
            continue
        price = evaluate(problem, found.choice)
        assert price.peak_usage == pytest.approx(min(p.peak_usage for p in prices)), seed
        assert price.cost == found.cost, seed


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1e-3, 1e3, 1e9]))
def test_the_unit_of_cost_does_not_matter(seed: int, scale: float) -> None:
    problem = random_problem(seed)
    scaled = Problem(
        tuple(replace(node, costs=node.costs * scale) for node in problem.nodes),
        tuple(replace(edge, costs=edge.costs * scale) for edge in problem.edges),
        tuple(replace(fan, costs=fan.costs * scale) for fan in problem.fans),
        problem.usage_limit,
    )
    found, oracle = solve(scaled), solve_by_enumeration(problem)
    assert found.status == oracle.status
    assert found.choice is None or math.isclose(
        found.cost, oracle.cost * scale, rel_tol=1e-6, abs_tol=1e-9 * scale
    )


@pytest.mark.parametrize("mesh", [(8,), (2, 4), (8, 8)])
def test_elimination_equals_the_ilp_on_a_block(mesh: tuple[int, ...]) -> None:
    form = presolve(normal_form(block_problem(mesh))).form
    eliminated, stated = solve_by_elimination(form), solve_by_pulp(form, time_limit_s=60, gap=1e-6)
    assert eliminated.cost == pytest.approx(stated.cost, rel=1e-9)


def test_both_ilps_agree_on_a_block_that_must_save_memory() -> None:
    problem = block_problem((2, 4))
    most = evaluate(problem, solve(problem).choice).peak_usage
    least = evaluate(problem, smallest_usage(problem).choice).peak_usage
    for share in np.linspace(0.05, 0.95, 4):
        tight = replace(problem, usage_limit=least + share * (most - least))
        reduced = presolve(normal_form(tight))
        stated, sparse = (ilp(reduced.form, time_limit_s=60, gap=1e-6) for ilp in ILPS)
        assert stated.cost == pytest.approx(sparse.cost, rel=1e-6)
        assert solve(tight).cost == pytest.approx(stated.cost, rel=1e-6)
    assert solve(replace(problem, usage_limit=least * 0.99)).status is Status.infeasible
    assert solve(replace(problem, usage_limit=least)).status is Status.optimal
