"""What wide problems are solved with: every part against enumeration or against the whole problem's own sums."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from solver import Status, evaluate, solve_by_enumeration
from solver.elimination import eliminate
from solver.improvement import improved
from solver.message_passing import raised_bound
from solver.mixing import mixed
from solver.neighbourhoods import around, during, freed, narrowed, surroundings
from solver.normal_form import NormalForm, normal_form
from solver.presolve import presolve
from solver.pricing import below, fits, picks_cost, usage_by_time
from solver.problem import Problem
from solver.solution import Solution
from solver.wide import solve_wide
from tests.solver.block_problem import block_problem
from tests.solver.random_problems import random_problem
from tests.solver.test_methods_agree import agree


def in_s(seconds: float) -> float:
    return time.perf_counter() + seconds


def reduced_problems(count: int) -> Iterator[tuple[int, Problem, NormalForm, Solution]]:
    """(seed, problem, presolved form, optimum) of random problems that presolve does not decide."""
    for seed in range(count):
        problem = random_problem(seed)
        reduced = presolve(normal_form(problem))
        if reduced is not None and reduced.form.costs:
            yield seed, problem, reduced.form, solve_by_enumeration(problem)


def random_picks(form: NormalForm, random: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(random.integers(costs.size)) for costs in form.costs)


def test_messages_never_bound_too_high_and_drop_nothing_that_the_optimum_needs() -> None:
    for seed, _, form, oracle in reduced_problems(200):
        messages = raised_bound(form, end_s=in_s(1))
        assert messages.bound <= oracle.cost + 1e-9, seed
        if oracle.choice is None:
            continue
        kept = presolve(messages.below(form, oracle.cost))
        assert kept is not None, seed
        rest = solve_wide(kept.form, end_s=in_s(1), gap=1e-6) if kept.form.costs else None
        cost = kept.form.constant if rest is None else rest.cost
        assert cost == pytest.approx(oracle.cost, abs=1e-9), seed


def test_messages_move_costs_without_changing_any_choice() -> None:
    random = np.random.default_rng(0)
    for seed, _, form, _ in reduced_problems(100):
        tables = raised_bound(form, end_s=in_s(1)).moved(form)
        unlimited = not form.room.size
        for _ in range(5):
            picks = random_picks(form, random)
            cost = picks_cost(form, picks)
            moved = picks_cost(tables, picks)
            assert not unlimited or math.isclose(moved, cost, abs_tol=1e-6) or cost == math.inf, seed


def test_messages_prove_what_elimination_finds_on_a_chain_of_blocks() -> None:
    form = presolve(normal_form(block_problem((8,), layers=3))).form
    exact = eliminate(form).cost
    bound = raised_bound(form, end_s=in_s(5)).bound
    assert bound <= exact + 1e-12


def test_what_is_below_a_cutoff_stays() -> None:
    for seed, _, form, oracle in reduced_problems(150):
        if oracle.choice is not None:
            kept = solve_wide(presolve(below(form, oracle.cost)).form, end_s=in_s(1), gap=1e-6)
            assert kept.cost == pytest.approx(oracle.cost, abs=1e-9), seed


def test_a_freed_part_costs_and_holds_what_it_does_in_the_whole() -> None:
    random = np.random.default_rng(1)
    for seed in range(200):
        form = normal_form(random_problem(seed))
        if any(costs.size == 0 for costs in form.costs):
            continue
        picks, other = random_picks(form, random), random_picks(form, random)
        free = np.flatnonzero(random.random(len(picks)) < 0.5).tolist()
        part = freed(form, surroundings(form), picks, usage_by_time(form, picks), free)
        changed = tuple(other[v] if v in free else pick for v, pick in enumerate(picks))
        rest = (0,) * (len(part.costs) - len(free))
        inner = [(*(c[v] for v in free), *rest) for c in (picks, changed)]
        whole, partial = (
            [picks_cost(f, c) for c in choices] for f, choices in ((form, (picks, changed)), (part, inner))
        )
        if all(map(math.isfinite, (*whole, *partial))):
            assert partial[1] - partial[0] == pytest.approx(whole[1] - whole[0], abs=1e-9), seed
        if fits(form, picks):
            assert fits(part, inner[1]) == fits(form, changed), seed


def test_a_narrowed_region_is_eliminated_with_small_tables() -> None:
    form = presolve(normal_form(block_problem((2, 4), layers=4))).form
    where, random = surroundings(form), np.random.default_rng(2)
    picks = (0,) * len(form.costs)
    for size in (5, 20, len(form.costs)):
        region = around(where, 3, size, random)
        assert len(set(region)) == len(region) <= size
        free = narrowed(form, where, region, 500, random)
        assert free
        assert set(free) <= set(region)
        part = freed(form, where, picks, usage_by_time(form, picks), free)
        largest = 500 * max(
            costs.size for costs in form.costs
        )  # a shared tensor's own table has its node too
        assert eliminate(part, max_entries=largest) is not None


def test_regions_in_time_hold_usage_near_the_moment() -> None:
    problem = block_problem((2, 4), layers=2)
    form = normal_form(Problem(problem.nodes, problem.edges, problem.fans, usage_limit=1e9))
    region = during(surroundings(form), 0, 7, np.random.default_rng(3))
    assert len(set(region)) == 7
    assert all(form.loads[node] for node in region)


def test_improved_picks_fit_and_are_never_dearer() -> None:
    gains = 0
    for seed, _, form, oracle in reduced_problems(120):
        if oracle.choice is None:
            continue
        fitting = [p for p in all_picks(form) if fits(form, p) and picks_cost(form, p) < math.inf]
        start = max(fitting, key=lambda p: picks_cost(form, p))
        picks = improved(form, start, guide=form, end_s=in_s(2), stall_s=0.01)
        assert fits(form, picks), seed
        assert oracle.cost - 1e-9 <= picks_cost(form, picks) <= picks_cost(form, start), seed
        gains += picks_cost(form, picks) < picks_cost(form, start)
    assert gains > 10


def all_picks(form: NormalForm) -> Iterator[tuple[int, ...]]:
    return iter(np.ndindex(tuple(costs.size for costs in form.costs)))


def test_mixing_is_at_least_as_good_as_what_is_mixed() -> None:
    random = np.random.default_rng(4)
    for seed, _, form, _ in reduced_problems(100):
        found = [random_picks(form, random) for _ in range(3)]
        best = min((picks_cost(form, p) for p in found if fits(form, p)), default=math.inf)
        mix = mixed(form, found, end_s=in_s(1), gap=1e-6)
        assert mix.cost <= best + 1e-9, seed
        assert mix.choice is None or fits(form, mix.choice), seed


def test_solve_wide_equals_enumeration() -> None:
    for seed, problem, form, oracle in reduced_problems(200):
        found = solve_wide(form, end_s=in_s(1), gap=1e-6)
        assert agree(found, oracle), (seed, found, oracle)
        if found.choice is not None:
            choice = presolve(normal_form(problem)).choice(found.choice)
            price = evaluate(problem, choice)
            assert price.fits(problem.usage_limit)
            assert price.cost == pytest.approx(found.cost, abs=1e-9)


def test_out_of_time_is_not_infeasible_and_has_a_bound() -> None:
    form = presolve(normal_form(block_problem((4, 4), limit=1e10))).form
    found = solve_wide(form, end_s=in_s(0.0), gap=1e-6)
    assert found.status in (Status.feasible, Status.timed_out, Status.optimal)
    assert -math.inf < found.lower_bound <= found.cost
