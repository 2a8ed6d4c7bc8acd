"""Any decisions make a program that computes what the plain model computes.

Strategies, boundary layouts, parameters at rest and inputs are drawn at random from the whole search space;
the generated program runs on simulated ranks. Loss and gradients must be the plain model's.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from autopar.clusters import cluster_named
from autopar.planner.decisions import decisions_of
from autopar.planner.mesh import MODEL, REPLICATE, SHARD, MeshAxis
from autopar.planner.prices import Prices
from autopar.planner.realize import Realized, realize
from autopar.planner.search import Model
from autopar.planner.space import Space, search_space
from tests.autopar.codegen.running import relative_errors, train_once
from tests.autopar.parity import MODELS
from tests.autopar.planner.planning_cases import built_model, graph_of_model, random_choice

MESHES = {
    "2 model": (MeshAxis(2, MODEL),),
    "4 model": (MeshAxis(4, MODEL),),
    "2 × 2 model": (MeshAxis(2, MODEL), MeshAxis(2, MODEL)),
    "2 shard × 2 model": (MeshAxis(2, SHARD), MeshAxis(2, MODEL)),
    "4 replicate": (MeshAxis(4, REPLICATE),),
}
SEEDS = (0, pytest.param(1, marks=pytest.mark.slow))
NAMES = ("alpha", "beta")
TOLERANCE = 1e-4


@cache
def _expected(model: str) -> tuple[Tensor, dict[str, Tensor]]:
    module, args, kwargs = built_model(model)
    loss = module(*args, **kwargs)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


@cache
def _space(model: str, mesh: str) -> tuple[Model, Space]:
    planned = Model.of(graph_of_model(model))
    axes = MESHES[mesh]
    devices = int(np.prod([axis.size for axis in axes]))
    prices = Prices(cluster_named(f"cpu:{devices}"), axes)
    return planned, search_space(planned.graph, planned.types, prices)


def _random_plan(model: str, mesh: str, seed: int) -> Realized:
    planned, space = _space(model, mesh)
    decisions = decisions_of(space.items, random_choice(space, random.Random(f"{model} {mesh} {seed}")))
    return realize(planned.graph, planned.types, NAMES[: len(MESHES[mesh])], decisions, space.prices)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_random_decisions_compute_what_the_plain_model_does(
    model: str, mesh: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, args, kwargs = built_model(model)
    sharded = _random_plan(model, mesh, seed).sharded
    loss, gradients = train_once(sharded, module, args, kwargs, monkeypatch)
    expected_loss, expected = _expected(model)
    errors = relative_errors(gradients, expected)
    assert abs(loss - expected_loss) / abs(expected_loss) < TOLERANCE
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}
