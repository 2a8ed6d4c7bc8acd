"""What devices send adds up from the plan, what they do adds up to the played step, and both are drawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autopar.plan.schema import Plan
from autopar.report import draw_inter_and_intra, draw_schedule, inter_and_intra_table
from autopar.report.anatomy import anatomy
from autopar.report.communication import exchanges
from autopar.report.device_traffic import PIPELINE, SEND, sent_by_device
from autopar.report.inter_and_intra import COLUMNS, device_step, inter_and_intra_markdown
from autopar.report.predicted_trace import predicted_trace
from tests.autopar.cli.command import small_plan

ACTIVATION_BYTES = 8 * 16 * 4
"""Of one sequence: 8 tokens, 16 wide, float32."""
TIED_BYTES = 16 * 16 * 4
"""Embedding and head: vocabulary 16."""


@pytest.fixture(scope="module")
def pipeline() -> Plan:
    return small_plan(cluster="cpu:2", pins="pp=2,microbatch=1")


@pytest.fixture(scope="module")
def sharded() -> Plan:
    return small_plan(cluster="cpu:4", pins="dp_shard=4,tp=1,cp=1,microbatch=1,zero=3", batch=8)


def sent(plan: Plan) -> dict[tuple[str, str], float]:
    return {(each.axis, each.kind): each.size_bytes for each in sent_by_device(anatomy(plan))}


def test_a_stage_sends_every_microbatch_and_gets_its_gradient_back(pipeline: Plan) -> None:
    """Four sequences, one at a time: each of two devices sends them one way, activations or gradients."""
    found = sent(pipeline)
    assert found[PIPELINE, SEND] == 4 * ACTIVATION_BYTES
    assert found[PIPELINE, "all_reduce"] == TIED_BYTES  # 2 (n − 1)/n of the whole, on two ranks


def test_zero_3_gathers_parameters_for_every_use_and_scatters_every_gradient(sharded: Plan) -> None:
    found, opened = sent(sharded), anatomy(sharded)
    parameters = sum(p.tensor.startswith("float32") for p in sharded.parameters)
    assert parameters
    by_name = {each.tensor: each for each in exchanges(opened)}
    gathers, sums = by_name["parameters, for use"], by_name["gradients of parameters"]
    assert gathers.count == sums.count == 2
    assert found["dp_shard", "all_gather"] == pytest.approx(3 / 4 * gathers.sent_bytes)
    assert found["dp_shard", "reduce_scatter"] == pytest.approx(3 / 4 * sums.sent_bytes)
    assert found["dp_shard", "all_gather"] == pytest.approx(2 * found["dp_shard", "reduce_scatter"])


def test_a_sum_over_tensor_ranks_sends_twice_what_a_gather_does() -> None:
    """Both directions of a block's two products, all-reduced: 2 (n − 1)/n of the activations each."""
    plan = small_plan(cluster="cpu:2", pins="tp=2", batch=4)
    found, opened = sent(plan), anatomy(plan)
    whole = {"all_reduce": 0.0, "all_gather": 0.0, "reduce_scatter": 0.0, "all_to_all": 0.0}
    for exchange in exchanges(opened):
        for hop in exchange.hops:
            for kind, size in ((hop.forward, hop.forward_bytes), (hop.backward, hop.backward_bytes)):
                if size:
                    whole[kind] += exchange.count * size
    for kind, size_bytes in whole.items():
        times = 1.0 if kind == "all_reduce" else 0.5
        assert found.get(("tp", kind), 0.0) == pytest.approx(times * size_bytes)


def test_one_device_sends_nothing_and_never_waits() -> None:
    step = device_step("alone", small_plan(cluster="cpu:1", pins=""))
    assert (step.sent, step.exposed_s, step.idle_s) == ((), 0.0, 0.0)
    assert step.operators_s == pytest.approx(step.step_s)


def test_seconds_are_those_of_the_trace(pipeline: Plan) -> None:
    step, timeline = device_step("pipeline", pipeline), predicted_trace(anatomy(pipeline)).timeline
    assert step.step_s == pytest.approx(timeline.step_s)
    assert step.idle_s / step.step_s == pytest.approx(timeline.bubble_fraction)
    assert 0 < step.operators_s < step.step_s


def test_table_markdown_and_figure_name_every_plan(pipeline: Plan, sharded: Plan) -> None:
    pytest.importorskip("matplotlib")
    plans = {"inter": pipeline, "intra": sharded}
    console = Console(file=io.StringIO(), width=300)
    console.print(inter_and_intra_table(plans))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    markdown = inter_and_intra_markdown([device_step(name, plan) for name, plan in plans.items()])
    for name in ("inter", "intra", "pp 2", "dp_shard 4", *COLUMNS):
        assert name in text
        assert name in markdown
    figure = draw_inter_and_intra(plans)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["inter\npp 2", "intra\ndp_shard 4"]


def test_a_schedule_has_a_box_for_every_pass(pipeline: Plan) -> None:
    """Four microbatches, forward and backward, on both ranks; each numbered where there is room."""
    pytest.importorskip("matplotlib")
    figure = draw_schedule(pipeline)
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [len(collection.get_paths()) for collection in axes.collections]
    assert sum(boxes) == 2 * (4 + 4 + 1)
    assert {text.get_text() for text in axes.texts} <= set("0123")
    assert len(draw_schedule(pipeline, share=0.5).axes[0].collections) == len(axes.collections)
