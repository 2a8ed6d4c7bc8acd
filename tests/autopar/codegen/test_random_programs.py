"""Any decisions make a program that computes what the plain model computes.

Strategies, boundary layouts, parameters at rest and inputs are drawn at random from the whole search space;
the generated program runs on simulated ranks. Loss and gradients must be the plain model's.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

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
from autopar.planner.space import Candidate, Space, search_space
from autopar.planner.tensors import Item
from autopar.shardings.placement import Layout
from tests.autopar.codegen.running import relative_errors, train_once
from tests.autopar.parity import MODELS
from tests.autopar.planner.planning_cases import built_model, graph_of_model

MESHES = {
    "2 model": (MeshAxis(2, MODEL),),
    "4 model": (MeshAxis(4, MODEL),),
    "2 × 2 model": (MeshAxis(2, MODEL), MeshAxis(2, MODEL)),
    "2 shard × 2 model": (MeshAxis(2, SHARD), MeshAxis(2, MODEL)),
    "4 replicate": (MeshAxis(4, REPLICATE),),
}
SEEDS = range(2)
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


def _random_choice(space: Space, rng: random.Random) -> tuple[int, ...]:
    """A candidate of every item that its producers' layouts can be converted to, drawn in execution order."""
    chosen: dict[Item, int] = {}
    reads: dict[tuple[Item, int], Any] = {
        (use.item, use.position): tensor for tensor in space.tensors for use in tensor.uses
    }

    def is_reachable(item: Item, candidate: Candidate) -> bool:
        return all(
            _arrives(space, reads[item, position], chosen, wanted)
            for position, wanted in enumerate(candidate.operands)
            if (item, position) in reads and reads[item, position].producer in chosen
        )

    order = sorted(space.items, key=lambda item: item.kind in ("operator", "output"))
    for item in order:
        candidates = space.items[item]
        legal = [place for place, each in enumerate(candidates) if is_reachable(item, each)]
        chosen[item] = rng.choice(legal)
    return tuple(chosen[item] for item in space.items)


def _arrives(space: Space, tensor: Any, chosen: dict[Item, int], wanted: Layout) -> bool:
    made = space.items[tensor.producer][chosen[tensor.producer]].results[tensor.result]
    table = space.prices.table(tensor.value, space.layouts(tensor))
    return bool(np.isfinite(table.seconds[table.index(made), table.index(wanted)]))


def _random_plan(model: str, mesh: str, seed: int) -> Realized:
    planned, space = _space(model, mesh)
    decisions = decisions_of(space.items, _random_choice(space, random.Random(f"{model} {mesh} {seed}")))
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
