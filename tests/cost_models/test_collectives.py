"""Collectives cost what the closed forms say, grow with bytes, and match what was measured."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cluster import AxisPath, Link, mesh_axes, parse_cluster
from cost_models.collectives import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    collective_provenance,
    reduce_scatter_s,
    send_s,
)
from cost_models.curves import CollectiveTable
from cost_models.units import GiB, MiB

COLLECTIVES = (all_gather_s, reduce_scatter_s, all_reduce_s, all_to_all_s)
CLUSTERS = ("h100:8", "h200:2", "a100:4x8", "v100:8", "b200:8", "cpu:4", "a100-80gb:64x8@200Gbps", "h100:3x5")
PLAIN = Link("plain", latency_s=1e-6, bytes_per_s=1e11, source="test")
SLOW = Link("slow", latency_s=1e-5, bytes_per_s=1e10, source="test")


def whole(text: str) -> AxisPath:
    cluster = parse_cluster(text)
    return mesh_axes(cluster, [cluster.devices])[0]


def inside(ranks: int) -> AxisPath:
    return AxisPath(ranks, ranks, 1, PLAIN, SLOW)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 64])
def test_a_ring_all_reduce_moves_twice_n_minus_one_over_n(ranks: int) -> None:
    latency_s = 2 * (ranks - 1) * PLAIN.latency_s
    expected_s = latency_s + 2 * (ranks - 1) / ranks * GiB / PLAIN.bytes_per_s
    assert all_reduce_s(GiB, inside(ranks)) == pytest.approx(expected_s)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(ranks: int) -> None:
    both_s = reduce_scatter_s(GiB, inside(ranks)) + all_gather_s(GiB, inside(ranks))
    assert all_reduce_s(GiB, inside(ranks)) == pytest.approx(both_s)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_one_rank_and_no_bytes_cost_nothing(collective) -> None:
    assert collective(GiB, inside(1)) == 0.0
    assert collective(0, inside(8)) == 0.0
    assert send_s(0, PLAIN) == 0.0


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("text", CLUSTERS)
def test_more_bytes_never_take_less_time(collective, text: str) -> None:
    seconds = [collective(2**power, whole(text)) for power in range(8, 36)]
    assert all(small <= large for small, large in itertools.pairwise(seconds))


@settings(derandomize=True, max_examples=60)
@given(
    tensor_bytes=st.integers(1, 2**34),
    ranks_per_node=st.sampled_from([2, 4, 8]),
    nodes=st.sampled_from([2, 4, 16]),
)
def test_using_all_cards_of_a_node_is_never_slower_than_one_ring_over_the_slow_link(
    tensor_bytes: int, ranks_per_node: int, nodes: int
) -> None:
    ranks = ranks_per_node * nodes
    together = AxisPath(ranks, ranks_per_node, nodes, PLAIN, SLOW)
    flat = AxisPath(ranks, 1, ranks, PLAIN, SLOW)
    for collective in (all_gather_s, reduce_scatter_s, all_reduce_s):
        assert collective(tensor_bytes, together) <= collective(tensor_bytes, flat) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("collective", "size_bytes", "measured_s"),
    [
        (all_reduce_s, 16 * MiB, 0.076e-3),
        (all_reduce_s, 256 * MiB, 0.89e-3),
        (all_reduce_s, GiB, 3.23e-3),
        (all_gather_s, 16 * MiB, 0.055e-3),
        (all_gather_s, 256 * MiB, 0.55e-3),
        (reduce_scatter_s, 256 * MiB, 0.58e-3),
        (all_to_all_s, 256 * MiB, 0.47e-3),
        (all_to_all_s, GiB, 1.63e-3),
    ],
)
def test_two_h200_match_an_independent_measurement(collective, size_bytes: int, measured_s: float) -> None:
    assert collective(size_bytes, whole("h200:2")) == pytest.approx(measured_s, rel=0.25)


def test_sends_between_h200_match_what_they_were_read_from() -> None:
    link = parse_cluster("h200:2").intra
    assert send_s(256 * MiB, link) == pytest.approx(0.75e-3, rel=0.05)
    assert send_s(GiB, link) == pytest.approx(2.91e-3, rel=0.05)


def test_four_nodes_reach_the_published_bus_bandwidth() -> None:
    """GTC NCCL slides: 192 GB/s all-reduce and 24 GB/s all-to-all on 32 A100 with 8 × 200 Gbit/s a node."""
    path = whole("a100-80gb:4x8")
    assert 2 * 31 / 32 * 16 * GiB / all_reduce_s(16 * GiB, path) == pytest.approx(192e9, rel=0.1)
    assert 31 / 32 * 16 * GiB / all_to_all_s(16 * GiB, path) == pytest.approx(30e9, rel=0.1)


def test_a_table_gives_what_was_measured_and_goes_on_at_its_last_rate() -> None:
    table = CollectiveTable((2, 4), ((1e3, 1e6), (1e3, 1e6)), ((1e-4, 1e-3), (3e-4, 3e-3)), "")
    assert table.seconds(1e3, 2) == pytest.approx(1e-4)
    assert table.seconds(1e6, 4) == pytest.approx(3e-3)
    assert table.seconds(1.0, 2) == pytest.approx(1e-4)
    assert table.seconds(4e6, 2) == pytest.approx(4e-3)
    assert table.seconds(10**4.5, 2) == pytest.approx(10**-3.5)
    assert table.seconds(1e3, 3) == pytest.approx(1e-4 + 2e-4 * math.log2(1.5))


def test_provenance_says_whether_a_curve_was_measured() -> None:
    assert collective_provenance("all_gather", whole("h100:8")) == "fitted"
    assert collective_provenance("all_gather", whole("h100:2x8")) == "roofline"
