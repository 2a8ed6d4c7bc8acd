"""Known parallelisms come out of the search, as the collectives that really run show.

Plans are made for fast machines and run on gloo processes. A collective of the program itself is a functional
one; those of the data-parallel engine are not. ``ACTIVATION_SHARE`` of an activation or more counts as one:
gradients of norm weights, sums of losses and the like are smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from autopar import parallelize
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.files import format_plan, parse_plan
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, plan_model
from tests.gloo_pool import GlooPool

ACTIVATION_SHARE = 1 / 8
COLUMNS = {"attention.q", "attention.k", "attention.v", "feed_forward.up", "feed_forward.gate"}
ROWS = {"attention.out", "feed_forward.down"}


@dataclass(frozen=True)
class Model:
    """A model and its batch."""

    spec: str
    batch: int
    tokens: int
    hidden: int

    def build(self, device: str) -> Any:
        return parse_model(self.spec).build(
            global_batch=self.batch, seq_len=self.tokens, device=device, seed=0
        )

    @property
    def activation(self) -> int:
        """Elements of one whole activation."""
        return self.batch * self.tokens * self.hidden


@dataclass(frozen=True)
class Ran:
    """What one rank did in one step."""

    forward: dict[str, int]
    """Collectives on activations by name, of the program itself."""
    backward: dict[str, int]
    counts: dict[str, int]
    """All collectives of the step by name."""
    share_at_rest: float
    """Part of all parameters that this rank holds."""


class _Recorder(CommDebugMode):
    """Counts functional collectives whose tensors are at least so large, beside what its base counts."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest
        self.large: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "_c10d_functional" and "wait" not in func.__name__:
            tensors = [each for each in (*args, result) if isinstance(each, Tensor)]
            if max(tensor.numel() for tensor in tensors) >= self.smallest:
                self.large[func.__name__.split(".")[0]] += 1
        return result


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    with GlooPool(4) as pool:
        yield pool


def _plan(model: Model, cluster: str, memory_bytes: int | None = None) -> Plan:
    built = model.build("meta")
    options = PlanOptions(memory_bytes=memory_bytes)
    return plan_model(built.module, built.args, built.kwargs, cluster_named(cluster), options)


def _train(model: Model, plan_text: str) -> Ran:
    """One step on every rank."""
    torch.set_num_threads(1)
    built = model.build("cpu")
    module = parallelize(built.module, inputs=built.inputs, plan=parse_plan(plan_text))
    smallest = int(model.activation * ACTIVATION_SHARE)
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in module.parameters())
    with _Recorder(smallest) as forward:
        loss = module(*built.args, **built.kwargs)
    with _Recorder(smallest) as backward:
        loss.backward()
    counts = Counter(_names(forward)) + Counter(_names(backward))
    whole = sum(parameter.numel() for parameter in module.parameters())
    return Ran(dict(forward.large), dict(backward.large), dict(counts), held / whole)


def _names(recorder: CommDebugMode) -> dict[str, int]:
    return {str(collective): count for collective, count in recorder.get_comm_counts().items()}


def _per_block(pool: GlooPool, shallow: Model, deep: Model, blocks: int, cluster: str) -> tuple[Any, Any]:
    """Collectives of one block, forward and backward: what ``blocks`` more of them add."""
    few, many = (pool.run(_train, model, format_plan(_plan(model, cluster)))[0] for model in (shallow, deep))
    return tuple(
        {name: (after.get(name, 0) - before.get(name, 0)) / blocks for name in {**after, **before}}
        for before, after in ((few.forward, many.forward), (few.backward, many.backward))
    )


def _factors(plan: Plan) -> dict[str, set[str]]:
    """Factors that the axis shards, by module of each product with a weight."""
    found: dict[str, set[str]] = {}
    for segment in plan.segments:
        for operator in segment.operators:
            if operator.call == "aten.linear.default" and operator.module in COLUMNS | ROWS:
                found.setdefault(operator.module, set()).add(operator.strategy.partition(":")[2])
    return found


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_one_sequence_on_a_fast_mesh_is_megatron_tensor_parallel(family: str, pool: GlooPool) -> None:
    few, many = (Model(f"{family}:layers={n},hidden=512,heads=8,vocab=512", 1, 128, 512) for n in (1, 3))
    plan = _plan(many, "h100:4")
    assert [(axis.axis, axis.size, axis.parameters) for axis in plan.mesh] == [("tp", 4, "model")]
    factors = _factors(plan)
    assert {module: factors[module] for module in COLUMNS & factors.keys()} == {
        module: {"o"} for module in COLUMNS & factors.keys()
    }
    assert {module: factors[module] for module in ROWS} == {module: {"i"} for module in ROWS}
    for ran in _per_block(pool, few, many, 2, "h100:4"):
        gathers = ran.get("all_gather_into_tensor", 0)
        scatters = ran.get("reduce_scatter_tensor", 0)
        assert ran.get("all_reduce", 0) + scatters == 2, "one reduction per sublayer and direction"
        assert gathers == scatters, "a reduce-scatter and an all-gather stand for an all-reduce"
        assert ran.get("all_to_all_single", 0) == 0


def test_one_long_sequence_in_a_narrow_model_is_context_parallel(pool: GlooPool) -> None:
    few, many = (Model(f"gpt:layers={n},hidden=128,heads=8,vocab=512", 1, 2048, 128) for n in (1, 3))
    plan = _plan(many, "h100:4")
    assert [(axis.axis, axis.size) for axis in plan.mesh] == [("cp", 4)]
    forward, backward = _per_block(pool, few, many, 2, "h100:4")
    assert forward == {"all_gather_into_tensor": 2}, "keys and values are gathered, nothing else"
    assert backward == {"reduce_scatter_tensor": 2}


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_a_large_batch_is_data_parallel_with_no_activation_collective(family: str, pool: GlooPool) -> None:
    model = Model(f"{family}:layers=2,hidden=64,heads=4,vocab=512", 64, 64, 64)
    plan = _plan(model, "h100:4")
    assert {axis.axis for axis in plan.mesh} <= {"dp_replicate", "dp_shard"}
    ran = pool.run(_train, model, format_plan(plan))[0]
    assert ran.forward == {}
    assert ran.backward == {}
    gradient_sums = sum(n for name, n in ran.counts.items() if "reduce" in name and "functional" not in name)
    assert gradient_sums >= 1, "gradients are summed by the data-parallel engine"


def test_memory_too_small_for_replicas_shards_parameters_at_rest(pool: GlooPool) -> None:
    model = Model("gpt:layers=2,hidden=256,heads=4,vocab=512", 64, 8, 256)
    replicas = _plan_with(model, "dp_replicate=4")
    shards = _plan_with(model, "dp_shard=4")
    limit = (_needed(replicas) + _needed(shards)) // 2
    plan = _plan(model, "h100:4", limit)
    assert _needed(plan) <= limit < _needed(replicas)
    for ran in pool.run(_train, model, format_plan(plan)):
        assert ran.share_at_rest < 0.5


def _needed(plan: Plan) -> int:
    """Bytes of the fullest device, context and communication buffers included."""
    overhead = max(memory.overhead_bytes for memory in plan.predicted.memory)
    return plan.predicted.peak_memory_bytes + overhead


def _plan_with(model: Model, pins: str) -> Plan:
    built = model.build("meta")
    return plan_model(built.module, built.args, built.kwargs, cluster_named("h100:4"), PlanOptions(pins))


def test_replicas_are_whole_at_rest(pool: GlooPool) -> None:
    model = Model("gpt:layers=2,hidden=64,heads=4,vocab=64", 32, 64, 64)
    for ran in pool.run(_train, model, format_plan(_plan_with(model, "dp_replicate=4"))):
        assert ran.share_at_rest == 1.0
