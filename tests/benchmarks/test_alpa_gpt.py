"""Alpa's plans become pins, unequal stages add up as equal ones do, and PFLOP/s are counted as Alpa counts them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.planner.pins import parse_pins
from benchmarks.alpa_gpt import (
    BATCH,
    FAMILY,
    Answer,
    Priced,
    Published,
    Submesh,
    misses,
    pinned_plan,
    pins_of,
    plan_text,
    planned,
    table,
    unequal_plan,
)

SMALL = Published("small", 4, 256, 4, (Submesh(2, 2, 1),) * 2, 128, 1.0)


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = "gpt:layers=4,hidden=256,heads=4,vocab=512"
    built = parse_model(model).build(global_batch=BATCH, seq_len=128)
    return capture_in("fp16", built.module, built.args, built.kwargs)


def test_stages_hold_all_blocks_and_their_devices_are_the_clusters() -> None:
    for published in FAMILY:
        assert sum(stage.blocks for stage in published.stages) == published.layers
        assert published.devices == cluster_named(published.cluster).devices


def test_pins_are_the_published_plan() -> None:
    for published in FAMILY:
        for text in pins_of(published):
            pins, stage = parse_pins(text), published.stages[0]
            assert pins.recompute == "full"
            assert (pins.pp, pins.sizes["tp"]) == (len(published.stages), stage.operator)
            assert pins.microbatch is not None
            assert pins.microbatch * published.microbatches * stage.data == BATCH


def test_counted_flops_are_alpas() -> None:
    """39B: 8 forward-sized passes over 2·12h² weights of a block and its attention, and 6·h·V of the head."""
    tokens, wide = BATCH * 1024, 8192
    blocks = 48 * 8 * (12 * wide**2 + 2 * 1024 * wide) * tokens
    assert FAMILY[-1].counted_flops == pytest.approx(blocks + 6 * wide * 51200 * tokens)


def test_unequal_stages_add_up_as_equal_ones_are_planned(graph: Graph) -> None:
    cluster = cluster_named("v100:1x4")
    summed, whole = unequal_plan(SMALL, graph, cluster), pinned_plan(SMALL, graph, cluster)
    assert summed.step_s == pytest.approx(whole.step_s, rel=0.02)


def test_a_plan_that_does_not_fit_says_so(graph: Graph) -> None:
    tight = cluster_named("v100:1x4")
    tight = replace(tight, device=replace(tight.device, memory_bytes=10**9))
    found = pinned_plan(SMALL, graph, tight)
    assert "does not fit" in found.note


def test_plans_are_named_by_mesh_and_execution(graph: Graph) -> None:
    plan = planned(graph, cluster_named("v100:1x4"), next(iter(pins_of(SMALL))))
    assert plan_text(plan) == "pp 2 × dp_replicate 2, 1f1b, recompute full, 128 microbatches"


def test_a_faster_published_plan_is_a_miss() -> None:
    slow, fast = Priced("slow", 2.0, 0), Priced("fast", 1.0, 0)
    lost, won = Answer(SMALL, slow, fast, 1.0), Answer(SMALL, fast, slow, 1.0)
    assert len(misses([lost, won])) == 1
    assert "+100.0%" in table([won])
