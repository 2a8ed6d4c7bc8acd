"""The whole search against planning every shape there is: pipeline, data, context and tensor ranks, microbatches,
recomputation and ZeRO levels; and how much work it is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

import autopar.planner.estimate
import autopar.planner.search
from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.errors import InfeasiblePlanError
from autopar.models import parse_model
from autopar.planner.diagnosis import idle_axis
from autopar.planner.estimate import Estimate
from autopar.planner.search import Options, Search, Tried, search

MODELS = (
    "mlp:layers=3,hidden=64,inputs=64,classes=8",
    "gpt:layers=1,hidden=64,heads=4,vocab=256",
    "gpt:layers=3,hidden=128,heads=4,vocab=512",
    "llama:layers=2,hidden=64,heads=4,kv_heads=2,ffn=128,vocab=256",
    "llama:layers=4,hidden=256,heads=8,kv_heads=8,ffn=512,vocab=1024",
)
CLUSTERS = ("cpu:2", "cpu:3", "cpu:4", "h100:2", "h100:4", "h100:2x2", "v100:2x2", "a100:3")
INSTANCES = 52
QUICK = 8
AS_LEAN_AS_ESTIMATED = 0.02
"""Memory price of strategies on stages, as in most estimates."""


@dataclass(frozen=True)
class Instance:
    """A question small enough to plan every shape."""

    model: str
    cluster: str
    batch: int
    tokens: int
    is_compiled: bool
    memory_share: float | None
    """Of what the fastest plan needs; None for the whole device."""

    def options(self, memory_bytes: int | None = None) -> Options:
        return Options(memory_bytes=memory_bytes, is_compiled=self.is_compiled)


def _instances() -> list[Instance]:
    rng = random.Random(20261124)
    found = []
    for _ in range(INSTANCES):
        cluster = rng.choice(CLUSTERS)
        shape = (rng.choice(MODELS), cluster, rng.choice((1, 2, 3, 4, 6, 8)), rng.choice((16, 64, 256)))
        is_compiled = rng.random() < 0.5 and not cluster.startswith("cpu")
        found.append(Instance(*shape, is_compiled, rng.uniform(0.7, 1.0) if rng.random() < 0.3 else None))
    return found


@cache
def _graph(model: str, batch: int, tokens: int) -> Graph:
    built = parse_model(model).build(global_batch=batch, seq_len=tokens)
    return capture_in("fp32", built.module, built.args, built.kwargs)


def _best_of_all(question: Search) -> Tried | None:
    """The fastest plan that fits, of every shape."""
    best = None
    for chain in question.chains(is_thorough=False) or question.chains(is_thorough=True):
        for shape in chain:
            found = question.exactly(Estimate(shape, 0.0, 0.0, memory_share=AS_LEAN_AS_ESTIMATED))
            if found is None or found.peak_bytes > question.limit or found.execution.waits:
                continue
            is_idle = idle_axis(found.realized.sharded, question.whole.types) is not None
            if not is_idle and (best is None or found.step_s < best.step_s):
                best = found
    return best


def _limit(instance: Instance, graph: Graph) -> int | None:
    if instance.memory_share is None:
        return None
    free = search(graph, cluster_named(instance.cluster), instance.options())
    return int(instance.memory_share * free.best.peak_bytes)


@pytest.mark.parametrize(
    "instance",
    [
        pytest.param(each, marks=[pytest.mark.slow] if at >= QUICK else [])
        for at, each in enumerate(_instances())
    ],
)
def test_the_search_finds_the_best_of_all_shapes(instance: Instance) -> None:
    graph, cluster = _graph(instance.model, instance.batch, instance.tokens), cluster_named(instance.cluster)
    try:
        options = instance.options(_limit(instance, graph))
        found = search(graph, cluster, options)
    except InfeasiblePlanError:
        options = instance.options(None if instance.memory_share is None else 1)
        assert _best_of_all(Search(graph, cluster, options)) is None
        return
    best = _best_of_all(Search(graph, cluster, options))
    assert best is None or found.best.step_s <= best.step_s * (1 + 1e-9), (found.best.shape, best.shape)


def _work(monkeypatch: pytest.MonkeyPatch, model: str, cluster: str, batch: int) -> int:
    """Integer programs that a search solves."""
    calls = 0
    for module in (autopar.planner.estimate, autopar.planner.search):
        solve = module.solve  # type: ignore[attr-defined]

        def counted(*args: Any, solve: Any = solve, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return solve(*args, **kwargs)

        monkeypatch.setattr(module, "solve", counted)
    built = parse_model(model).build(global_batch=batch, seq_len=1024)
    graph = capture_in("bf16", built.module, built.args, built.kwargs)
    search(graph, cluster_named(cluster), Options(is_compiled=True))
    monkeypatch.undo()
    return calls


def test_work_does_not_grow_with_depth_and_little_with_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As integer programs solved, which no machine's speed changes."""
    model = "llama:layers={},hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=32000"
    once = _work(monkeypatch, model.format(16), "h100:4x8", 128)
    assert once <= 60
    assert _work(monkeypatch, model.format(32), "h100:4x8", 128) <= 1.1 * once + 4
    assert _work(monkeypatch, model.format(16), "h100:8x8", 128) <= 1.3 * once + 4
