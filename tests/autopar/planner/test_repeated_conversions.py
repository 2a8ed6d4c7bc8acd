"""Recomputation repeats gathers, under full recomputation sums too, except what no gradient reads again."""

from __future__ import annotations

import pytest

from autopar.capture.biases import without_biases
from autopar.capture.graph import Value
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.schema import Plan
from autopar.planner.execution import Execution
from autopar.planner.mesh import MODEL, MeshAxis
from autopar.planner.operators import planned_types
from autopar.planner.prices import Prices
from autopar.planning import PlanOptions, plan_graph
from autopar.report.anatomy import anatomy
from autopar.report.communication import exchanges
from autopar.report.step_blocks import planned_step
from autopar.shardings.placement import REPLICATE_PARTIAL, shard
from cost_models.collectives import all_gather_s

BLOCK = "GPTBlock"
SIZES = "gpt:layers=4,hidden=2048,heads=16,vocab=8192"


@pytest.fixture(scope="module", params=["none", "selective", "full"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Tensor and sequence parallel: gathers after norms, scattered sums after row-cut products."""
    built = parse_model(SIZES).build(global_batch=8, seq_len=1024)
    graph = capture_in("bf16", built.module, built.args, built.kwargs)
    pins = f"tp=4,microbatch=8,recompute={request.param}"
    return plan_graph(graph, cluster_named("a100:4"), PlanOptions(pins, precision="bf16"))


def converted_again(level: str, *, is_compiled: bool) -> frozenset[str]:
    """Values of a block, as the planner names them."""
    built = parse_model(SIZES).build(global_batch=8, seq_len=64)
    graph = without_biases(capture_in("bf16", built.module, built.args, built.kwargs))
    execution = Execution(is_compiled=is_compiled, recompute=level)
    prices = Prices(cluster_named("a100:4"), (MeshAxis(4, MODEL),), execution=execution)
    return prices.kept(planned_types(graph)[BLOCK]).converted_again


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_is_repeated(is_compiled: bool) -> None:
    """Sums behind products are kept by selective recomputation; nothing reads the last one's again."""
    names = {"norm_1", "norm_2", "out_product", "attention_q_weight"}
    assert not converted_again("none", is_compiled=is_compiled)
    assert names - converted_again("selective", is_compiled=is_compiled) == {"out_product"}
    assert names <= converted_again("full", is_compiled=is_compiled)
    for level in ("selective", "full"):
        assert "x" not in converted_again(level, is_compiled=is_compiled)
        if is_compiled:
            assert "down_product" not in converted_again(level, is_compiled=is_compiled)


def test_a_repeated_gather_costs_its_forward_once_more() -> None:
    prices = Prices(cluster_named("a100:4"), (MeshAxis(4, MODEL),))
    value = Value("x", (8, 1024, 2048), "bfloat16", requires_grad=True)
    sharded, whole = (shard(1),), (REPLICATE_PARTIAL,)
    layouts = frozenset([sharded, whole])
    once, twice = (prices.table(value, layouts, runs_again=again) for again in (False, True))
    once_s, twice_s = (
        float(table.seconds[table.index(sharded), table.index(whole)]) for table in (once, twice)
    )
    size_bytes = 8 * 1024 * 2048 * 2
    assert twice_s - once_s == pytest.approx(all_gather_s(size_bytes, prices.paths[0]))


def test_the_plans_seconds_are_those_of_its_hops(plan: Plan) -> None:
    opened = anatomy(plan)
    for each in exchanges(opened):
        once_s = sum(hop.forward_s + hop.again_s + hop.backward_s for hop in each.hops)
        assert each.seconds == pytest.approx(each.count * once_s, rel=1e-6)
    repeated = [each for each in opened.sharded.conversions if each.runs_again]
    assert bool(repeated) == (plan.stages[0].recompute != "none")


def test_the_played_step_has_all_of_it(plan: Plan) -> None:
    opened = anatomy(plan)
    parts = [
        part
        for stage in planned_step(opened).step.stages
        for block in stage.blocks
        for part in (*block.forward, *block.backward)
        if part.is_collective
    ]
    microbatches = plan.schedule.microbatches
    assert microbatches * sum(part.seconds for part in parts) == pytest.approx(
        opened.realized.conversion_s, rel=1e-3
    )
