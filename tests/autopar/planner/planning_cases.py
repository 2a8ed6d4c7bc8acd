"""Models and searches that the planner's tests share; each search is made once."""

from __future__ import annotations

from functools import cache
from typing import Any

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
from tests.autopar.parity import MODELS

__all__ = ["MODELS", "built_model", "found", "graph_of_model", "plan_of", "plan_of_found"]

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
