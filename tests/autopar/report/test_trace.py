"""Predicted steps as Chrome traces: sound, as long as the plan says, with every operator on them."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from autopar.report.anatomy import Anatomy, anatomy
from autopar.report.predicted_trace import HOST, PredictedTrace, predicted_trace
from autopar.report.step_blocks import Detail, planned_step
from autopar.report.trace import trace_events
from cost_models.simulator import simulate
from cost_models.simulator_blocks import step_actions
from cost_models.simulator_pipeline import Pipeline, StageCost, pipeline_actions
from tests.autopar.cli.command import small_plan
from tests.autopar.report.chrome_traces import assert_is_chrome_trace, row

SOURCE = "gpt:layers=3,hidden=32,heads=4,vocab=64"
ALONE = ("cpu:1", "")
TENSOR = ("cpu:2", "tp=2")
SEQUENCE = ("cpu:4", "cp=2,tp=2")
SHARDED = ("cpu:4", "dp_shard=2,tp=2,zero=2")
SHARDED_TWICE = ("cpu:2", "dp_shard=2,zero=3")
REPLICATED = ("cpu:2", "dp_replicate=2")
SLICED = ("cpu:2", "dp_shard=2,zero=2,microbatch=1")
ON_GPU = ("h100:4", "dp_shard=2,tp=2,zero=3")
WITHOUT_OVERLAP = (ALONE, TENSOR, SEQUENCE, SHARDED, REPLICATED, SLICED, ("h100:4", "tp=4"))


@cache
def opened(cluster: str, pins: str) -> Anatomy:
    return anatomy(small_plan(SOURCE, cluster, pins, batch=8))


@cache
def traced(cluster: str, pins: str) -> PredictedTrace:
    return predicted_trace(opened(cluster, pins))


@pytest.mark.parametrize("choice", [*WITHOUT_OVERLAP, SHARDED_TWICE, ON_GPU], ids=str)
def test_a_trace_is_sound(choice: tuple[str, str]) -> None:
    assert_is_chrome_trace(traced(*choice).events)


@pytest.mark.parametrize("choice", WITHOUT_OVERLAP, ids=str)
def test_without_overlap_a_traced_step_takes_as_long_as_the_plan_says(choice: tuple[str, str]) -> None:
    found = traced(*choice)
    device_step_s = found.plan_step_s + found.differences_s[HOST]
    assert found.timeline.step_s == pytest.approx(device_step_s, rel=1e-3)
    planned = opened(*choice).plan.predicted
    assert found.timeline.exposed_communication_s(0) == pytest.approx(
        planned.exposed_communication_s, rel=1e-2, abs=1e-3 * found.plan_step_s
    )


def test_the_roots_parameters_are_gathered_once_where_the_plan_counts_two() -> None:
    found, prices = traced(*SHARDED_TWICE), opened(*SHARDED_TWICE).prices
    root = planned_step(opened(*SHARDED_TWICE)).step.units["root"]
    assert prices.execution.zero == 3
    assert found.timeline.step_s == pytest.approx(found.plan_step_s - root.gather_s, rel=1e-3)


def test_differences_add_up() -> None:
    found = traced(*ON_GPU)
    assert sum(found.differences_s.values()) == pytest.approx(found.timeline.step_s - found.plan_step_s)
    assert abs(found.differences_s["other"]) < 1e-3 * found.plan_step_s


@pytest.mark.parametrize("choice", [TENSOR, SEQUENCE, SHARDED, SLICED], ids=str)
def test_every_operator_of_every_block_is_on_it_in_both_directions(choice: tuple[str, str]) -> None:
    plan, microbatches = opened(*choice).plan, opened(*choice).prices.execution.microbatches
    compute = row(traced(*choice).events, "compute")
    shown = [
        (e["args"]["block"], e["name"]) for e in compute if e["args"].get("pass", "").startswith("forward")
    ]
    for segment in plan.segments:
        for operator in segment.operators:
            count = sum(name == operator.name for _, name in shown)
            assert count >= segment.count * microbatches
    backward = sum(e["args"]["seconds"] for e in compute if e["args"].get("pass", "").startswith("backward"))
    expected = sum(s.count * o.backward_s for s in plan.segments for o in s.operators)
    assert backward >= microbatches * expected * (1 - 1e-9)


def test_an_operator_says_what_it_does_on_one_rank() -> None:
    compute = row(traced(*TENSOR).events, "compute")
    facts = next(e["args"] for e in compute if e["args"].get("operator") == "aten.gelu.default")
    assert facts["strategy"].startswith("tp:")
    assert facts["makes"] == ["gelu_1 float32[8, 8, 64] tp:S(2)"]
    assert facts["provenance"] in ("measured", "fitted", "roofline")
    assert facts["source"].startswith("gpt.py:")
    assert facts["seconds"] > 0.0
    assert facts["block"] == "layers.0"


def test_collectives_gathers_and_sums_have_rows_of_their_own() -> None:
    events = traced(*ON_GPU).events
    assert row(events, "collectives")
    names = [event["name"] for event in row(events, "data-parallel")]
    assert sum("UNSHARD" in name for name in names) == 2 * 3 + 1
    assert sum("REDUCE_GRAD" in name for name in names) == 3 + 1
    blocks = [event["name"] for event in row(events, "blocks")]
    assert blocks[:2] == ["Root0 forward", "layers.0 forward"]
    assert blocks[-2:] == ["layers.0 backward", "Root0 backward"]


@pytest.mark.parametrize("choice", [TENSOR, SHARDED, SLICED, ON_GPU], ids=str)
def test_memory_rises_from_what_rests_to_about_the_plans_peak_and_back(choice: tuple[str, str]) -> None:
    levels = [e["args"]["bytes"] for e in traced(*choice).events if e["ph"] == "C"]
    resting = planned_step(opened(*choice)).resting_bytes[0]
    assert levels[-1] == min(levels) == resting
    peak = opened(*choice).plan.predicted.peak_memory_bytes
    assert max(levels) == pytest.approx(peak, rel=0.15)


def test_equal_ranks_are_shown_as_often_as_asked_for() -> None:
    events = predicted_trace(opened(*SEQUENCE), ranks=4).events
    assert_is_chrome_trace(events)
    assert {event["pid"] for event in events} == {0, 1, 2, 3}


def test_of_a_long_step_a_block_is_one_part() -> None:
    planned = planned_step(opened(*SLICED), most_parts=10)
    timeline = simulate(step_actions(planned.step))
    assert timeline.step_s == pytest.approx(traced(*SLICED).plan_step_s, rel=1e-3)
    events = trace_events(timeline, {0: "rank 0"}, planned.details)
    assert {event["name"] for event in row(events, "compute")} == {"operators", "optimizer"}


STAGED = (
    ("cpu:4", "pp=2,tp=2,microbatch=1"),
    ("cpu:2", "pp=2,schedule=gpipe,microbatch=2"),
    ("h100:2", "pp=2,schedule=gpipe,microbatch=1,recompute=full"),
    ("h100:4", "pp=2,dp_shard=2,zero=3,microbatch=1"),
    ("h100:2", "pp=2,schedule=zero-bubble,microbatch=1"),
)


@pytest.mark.parametrize("choice", STAGED, ids=str)
def test_a_pipeline_is_played_close_to_the_plans_closed_form(choice: tuple[str, str]) -> None:
    found, plan = traced(*choice), opened(*choice).plan
    assert_is_chrome_trace(found.events)
    assert found.timeline.step_s == pytest.approx(found.plan_step_s, rel=0.1)
    assert sum(found.differences_s.values()) == pytest.approx(found.timeline.step_s - found.plan_step_s)
    resting = planned_step(opened(*choice)).resting_bytes
    for rank, memory in enumerate(plan.predicted.memory):
        assert found.timeline.memory[rank][-1][1] == resting[rank]
        planned_bytes = sum(msgspec.to_builtins(memory).values()) - memory.overhead_bytes
        # A backward in two halves holds what one operator needs beside its tensors twice.
        twice = memory.temporaries_bytes if "zero-bubble" in choice[1] else 0
        assert 0.9 * planned_bytes <= found.timeline.peak_bytes(rank) <= 1.1 * (planned_bytes + twice)


def test_a_pipeline_of_equal_ranks_shows_one_or_more_of_each_stage() -> None:
    choice = opened(*STAGED[0])
    assert {event["pid"] for event in predicted_trace(choice).events} == {0, 2}
    events = predicted_trace(choice, ranks=2).events
    assert_is_chrome_trace(events)
    assert {event["pid"] for event in events} == {0, 1, 2, 3}


def test_arrows_lead_from_sends_to_receives() -> None:
    events = traced(*STAGED[2]).events
    starts = [event for event in events if event["ph"] == "s"]
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(starts) == len(ends) == 2 * 8
    assert all(ends[event["id"]]["pid"] == 1 - event["pid"] for event in starts)
    assert len(row(events, "receive forward", pid=1)) == 8


def test_actions_without_details_are_shown_by_name() -> None:
    cost = StageCost(1e-3, 1e-3, 1e-3, weight_activation_bytes=5, send_forward_s=1e-4, send_backward_s=1e-4)
    timeline = simulate(pipeline_actions([cost] * 4, Pipeline("1f1b", 4, 8)))
    details = {"0F0": Detail("first", "embedding", "forward 0", {"operator": "aten.embedding.default"})}
    events = trace_events(timeline, {rank: f"rank {rank}" for rank in range(4)}, details)
    assert_is_chrome_trace(events)
    assert [event["name"] for event in row(events, "compute")][:3] == ["first", "0F1", "0F2"]
    assert len(row(events, "send forward", pid=1)) == 8
