"""Models and searches that the planner's tests share; each search is made once."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from autopar.capture import capture, fingerprint
from autopar.capture.graph import Graph
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.schema import Plan
from autopar.planner.assemble import Question, make_plan
from autopar.planner.pins import parse_pins
from autopar.planner.search import Found, Options, search
from autopar.planner.space import Candidate, Space
from autopar.planner.tensors import Item, Tensor
from autopar.shardings.placement import Layout
from tests.autopar.parity import MODELS

__all__ = ["MODELS", "built_model", "found", "graph_of_model", "plan_of", "plan_of_found", "random_choice"]

BATCH, SEQ_LEN = 8, 16


@cache
def built_model(
    model: str, batch: int = BATCH, seq_len: int = SEQ_LEN, device: str = "cpu"
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """One of ``MODELS``, or a MODEL string, and its global batch."""
    torch.set_num_threads(1)
    spec = MODELS.get(model, model)
    sizes = {} if "factory" in spec else {"global_batch": batch, "seq_len": seq_len}
    built = parse_model(spec).build(device=device, seed=0, **sizes)
    return built.module, built.args, dict(built.kwargs)


@cache
def graph_of_model(model: str, batch: int = BATCH, seq_len: int = SEQ_LEN) -> Graph:
    """The captured graph."""
    return capture(*built_model(model, batch, seq_len, "meta"))


@cache
def found(
    model: str, cluster: str, pins: str = "", memory_bytes: int | None = None, batch: int = BATCH
) -> Found:
    """The search's answer."""
    options = Options(parse_pins(pins), memory_bytes)
    return search(graph_of_model(model, batch), cluster_named(cluster), options)


def plan_of_found(answer: Found, model: str, cluster: str, batch: int = BATCH) -> Plan:
    """The plan of an answer."""
    graph, known = graph_of_model(model, batch), cluster_named(cluster)
    question = Question("", fingerprint(graph), known, known.device.memory_bytes, "fp32", "adamw", "", "0")
    return make_plan(graph, question, answer)


@cache
def plan_of(model: str, cluster: str, pins: str = "") -> Plan:
    """The best plan."""
    return plan_of_found(found(model, cluster, pins), model, cluster)


def random_choice(space: Space, rng: random.Random) -> tuple[int, ...]:
    """A candidate of every item that its producers' layouts can be converted to, drawn in execution order."""
    chosen: dict[Item, int] = {}
    reads: dict[tuple[Item, int], Tensor] = {
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


def _arrives(space: Space, tensor: Tensor, chosen: dict[Item, int], wanted: Layout) -> bool:
    made = space.items[tensor.producer][chosen[tensor.producer]].results[tensor.result]
    table = space.prices.table(tensor.value, space.layouts(tensor))
    return bool(np.isfinite(table.seconds[table.index(made), table.index(wanted)]))
