"""The search's answer is what its problem says, is optimal, and stays the same."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from autopar.clusters import cluster_named
from autopar.planner.decisions import decisions_of
from autopar.planner.mesh import MODEL, REPLICATE, SHARD, MeshAxis
from autopar.planner.prices import Prices
from autopar.planner.problem import solver_problem
from autopar.planner.realize import realize
from autopar.planner.search import Model, Options, search
from autopar.planner.space import Space, search_space
from solver import Problem, Status, evaluate, solve, solve_by_enumeration
from tests.autopar.planner.planning_cases import MODELS, found, graph_of_model, plan_of_found, random_choice

CASES = [
    *((model, cluster) for model in MODELS for cluster in ("cpu:2", "cpu:4")),
    ("gpt", "h100:2x2"),
    ("two-tower", "h100:2x2"),
]


@pytest.mark.parametrize(("model", "cluster"), CASES)
def test_every_plan_costs_what_the_solver_says(model: str, cluster: str) -> None:
    answer = found(model, cluster)
    for tried in (answer.best, *answer.runner_ups):
        # Strategies on stages are asked to be lean, beyond what they cost.
        assert tried.solution.status is (Status.feasible if tried.staged else Status.optimal)
        assert math.isclose(tried.realized.objective_s, tried.solution.cost, rel_tol=1e-9)
        assert tried.solution.lower_bound <= tried.solution.cost * (1 + 1e-9)
    assert all(answer.best.step_s <= tried.step_s for tried in answer.runner_ups)
    assert answer.runner_ups
    assert answer.misfits == 0


@pytest.mark.parametrize("model", ["gpt", "hf-bert", "mlp"])
def test_the_same_question_has_the_same_answer(model: str) -> None:
    graph, cluster = graph_of_model(model), cluster_named("cpu:4")
    first, second = (search(graph, cluster, Options()) for _ in range(2))
    plans = [plan_of_found(answer, model, "cpu:4") for answer in (first, second)]
    assert plans[0].segments == plans[1].segments
    assert plans[0].parameters == plans[1].parameters
    assert plans[0].mesh == plans[1].mesh
    assert plans[0].conversions == plans[1].conversions


CHOICES = 2**11
"""How many choices are listed in all."""
MESHES = {
    "2 model": (MeshAxis(2, MODEL),),
    "2 shard × 2 model": (MeshAxis(2, SHARD), MeshAxis(2, MODEL)),
    "2 model × 3 model": (MeshAxis(2, MODEL), MeshAxis(3, MODEL)),
    "2 replicate × 2 shard": (MeshAxis(2, REPLICATE), MeshAxis(2, SHARD)),
}
ROUNDING_BYTES = 64 * 1000
"""64 B for each of at most a thousand tensors."""


@cache
def _space(model: str, mesh: str) -> tuple[Model, Space]:
    planned, axes = Model.of(graph_of_model(model, 12, 12)), MESHES[mesh]
    cluster = cluster_named(f"cpu:{math.prod(axis.size for axis in axes)}")
    return planned, search_space(planned.graph, planned.types, Prices(cluster, axes))


def _narrowed(problem: Problem, choice: tuple[int, ...], rng: random.Random) -> Problem:
    """The problem with one strategy for most nodes, and two for as many as can be listed."""
    wide = rng.sample(range(len(choice)), min(len(choice), int(math.log2(CHOICES))))
    kept = [
        np.array(sorted({chosen, rng.randrange(node.costs.size) if place in wide else chosen}))
        for place, (chosen, node) in enumerate(zip(choice, problem.nodes, strict=True))
    ]
    nodes = tuple(
        replace(node, costs=node.costs[keep], usages=node.usages[keep])
        for node, keep in zip(problem.nodes, kept, strict=True)
    )
    fans = tuple(
        replace(
            fan,
            produced=fan.produced[kept[fan.producer]],
            wanted=tuple(w[kept[c]] for w, c in zip(fan.wanted, fan.consumers, strict=True)),
        )
        for fan in problem.fans
    )
    return Problem(nodes, problem.edges, fans, problem.usage_limit)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_the_answer_is_the_cheapest_of_all_choices(model: str, mesh: str) -> None:
    """Where few strategies are left to choose from, so that all choices can be listed."""
    _, space = _space(model, mesh)
    rng = random.Random(0)
    problem = _narrowed(solver_problem(space), random_choice(space, rng), rng)
    answer, oracle = solve(problem), solve_by_enumeration(problem)
    assert answer.status is Status.optimal
    assert answer.cost == pytest.approx(oracle.cost, rel=1e-9)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", ["gpt", "llama", "two-tower"])
def test_any_choice_costs_and_keeps_what_the_plan_it_makes_does(model: str, mesh: str) -> None:
    """Not only the best one: folding, shared conversions and upkeep agree on both roads.

    The solver adds up all gradients and all that is kept, which is no less than any moment of the step holds
    (but for the allocator's rounding).
    """
    planned, space = _space(model, mesh)
    problem, names = solver_problem(space), ("a", "b")[: len(MESHES[mesh])]
    for seed in range(3):
        choice = random_choice(space, random.Random(seed))
        decisions = decisions_of(space.items, choice)
        realized = realize(planned.graph, planned.types, names, decisions, space.prices)
        price, memory = evaluate(problem, choice), realized.memory
        kept = memory.parameters + memory.gradients + memory.optimizer + memory.activations
        assert realized.objective_s == pytest.approx(price.cost, rel=1e-9)
        assert 0.5 * price.peak_usage <= kept <= price.peak_usage + ROUNDING_BYTES


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_no_random_choice_is_cheaper_than_the_best(model: str, mesh: str) -> None:
    _, space = _space(model, mesh)
    problem = solver_problem(space)
    best = solve(problem)
    for seed in range(5):
        assert evaluate(problem, random_choice(space, random.Random(seed))).cost >= best.cost
