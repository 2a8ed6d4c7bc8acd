"""Each objective's plan is the best by it, and says for which devices it is."""

from __future__ import annotations

from functools import cache

import pytest

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named, cluster_of_plan
from autopar.errors import InfeasiblePlanError, PinError
from autopar.models import parse_model
from autopar.planner.search import Options, search
from autopar.planning import PlanOptions, plan_graph
from cost_models.cluster import smaller_clusters

SMALL = "gpt:layers=2,hidden=64,heads=4,vocab=256"


@cache
def _graph(batch: int = 8) -> Graph:
    built = parse_model(SMALL).build(global_batch=batch, seq_len=64)
    return capture_in("fp32", built.module, built.args, built.kwargs)


def test_no_plan_needs_less_memory_than_the_leanest() -> None:
    cluster = cluster_named("cpu:4")
    fast, lean = (plan_graph(_graph(), cluster, PlanOptions(objective=each)) for each in ("time", "memory"))
    needed = lean.predicted.peak_memory_bytes
    assert needed < fast.predicted.peak_memory_bytes
    assert lean.predicted.step_time_s >= fast.predicted.step_time_s
    with pytest.raises(InfeasiblePlanError):
        search(_graph(), cluster, Options(memory_bytes=int(0.9 * needed)))


def test_a_small_model_is_busiest_on_few_devices() -> None:
    cluster = cluster_named("h100:2x4")
    plan = plan_graph(_graph(), cluster, PlanOptions(objective="throughput-per-device"))
    used = cluster_of_plan(plan)
    assert used.devices < cluster.devices
    for part in (cluster, *smaller_clusters(cluster)):
        other = plan_graph(_graph(), part, PlanOptions())
        assert plan.predicted.step_time_s * used.devices <= other.predicted.step_time_s * part.devices * (
            1 + 1e-9
        )


def test_parts_of_a_cluster_divide_it_and_keep_its_links() -> None:
    cluster = cluster_named("a100-80gb:4x8@200Gbps")
    parts = smaller_clusters(cluster)
    assert [(part.nodes, part.devices_per_node) for part in parts] == [(2, 8), (1, 8), (1, 4), (1, 2), (1, 1)]
    for part in parts:
        assert part == cluster_named(part.name)


def test_an_unknown_objective_is_named_with_the_known_ones() -> None:
    with pytest.raises(PinError, match="objective 'speed' is unknown: known are time, memory, throughput"):
        plan_graph(_graph(), cluster_named("cpu:2"), PlanOptions(objective="speed"))
