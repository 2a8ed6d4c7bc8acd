"""Seconds of collectives: latency + bytes over bandwidth, inside a node and over the network.

Rings and their bandwidth terms: Thakur, Rabenseifner and Gropp, "Optimization of collective communication
operations in MPICH" (2005). A collective that spans nodes runs one ring per network card, so that a node's
cards work together and the slower of the two levels sets the pace (NCCL; seen as 192 GB/s bus bandwidth on
4 nodes of 8 A100 with 8 × 25 GB/s, against 24 GB/s of an all-to-all, which cannot share cards). A sum of all
takes a ring or a tree, whichever is sooner.
"""

from __future__ import annotations

import math

from cost_models.topology import AxisPath, Link

__all__ = [
    "all_gather_s",
    "all_reduce_s",
    "all_to_all_s",
    "collective_provenance",
    "reduce_scatter_s",
    "send_s",
]

TREE_BANDWIDTH = 0.92  # of a ring's, for the tree all-reduce: NCCL 2.x, src/graph/tuning.cc


def all_gather_s(output_bytes: float, path: AxisPath) -> float:
    """Seconds until every rank holds ``output_bytes``, each having brought an equal part (ring)."""
    return _ring_s("all_gather", _ring_bytes(output_bytes, path.ranks), path)


def reduce_scatter_s(input_bytes: float, path: AxisPath) -> float:
    """Seconds until every rank holds its part of the sum of ``input_bytes`` on each rank (ring)."""
    return _ring_s("reduce_scatter", _ring_bytes(input_bytes, path.ranks), path)


def all_reduce_s(tensor_bytes: float, path: AxisPath) -> float:
    """Seconds until every rank holds the sum of ``tensor_bytes``: reduce-scatter and all-gather (ring)."""
    return _ring_s("all_reduce", 2.0 * _ring_bytes(tensor_bytes, path.ranks), path)


def all_to_all_s(tensor_bytes: float, path: AxisPath) -> float:
    """Seconds until every rank sent an equal part of its ``tensor_bytes`` to every rank.

    What leaves the node goes over the rank's own share of the network; both levels work at the same time.
    """
    if path.ranks == 1 or tensor_bytes <= 0:
        return 0.0
    inside = tensor_bytes * (path.ranks_per_node - 1) / path.ranks
    outside = tensor_bytes * (path.ranks - path.ranks_per_node) / path.ranks
    inside_s = _level_s("all_to_all", inside, path.ranks_per_node, path.intra)
    if not path.crosses_nodes:
        return inside_s
    return max(inside_s, path.inter.latency_s * math.log2(2 * path.nodes) + outside / path.inter.bytes_per_s)


def send_s(message_bytes: float, link: Link) -> float:
    """Seconds until one rank's ``message_bytes`` have arrived at another."""
    return _level_s("send", message_bytes, 2, link) if message_bytes > 0 else 0.0


def collective_provenance(collective: str, path: AxisPath) -> str:
    """How its seconds are known: ``fitted`` (a curve through measurements of this link) or ``roofline``."""
    is_fitted = collective in path.intra.collectives and not path.crosses_nodes
    return "fitted" if is_fitted else "roofline"


def _ring_bytes(tensor_bytes: float, ranks: int) -> float:
    """What each rank of a ring puts on the wire while a tensor goes around once."""
    return tensor_bytes * (ranks - 1) / ranks


def _ring_s(collective: str, wire_bytes: float, path: AxisPath) -> float:
    if path.ranks == 1 or wire_bytes <= 0:
        return 0.0
    inside_s = _level_s(collective, wire_bytes, path.ranks_per_node, path.intra)
    if not path.crosses_nodes:
        return inside_s
    network_s = wire_bytes / (path.ranks_per_node * path.inter.bytes_per_s)
    around_s = _ring_latency_s(path) + max(inside_s, network_s)
    if collective != "all_reduce":
        return around_s
    up_and_down_s = _tree_latency_s(path) + max(inside_s, network_s / TREE_BANDWIDTH)
    return min(around_s + _ring_latency_s(path), up_and_down_s)


def _ring_latency_s(path: AxisPath) -> float:
    """One time around: a hop between nodes, then a hop to each further rank of the node."""
    inside_s = (path.ranks_per_node - 1) * path.intra.latency_s
    return (path.nodes - 1) * (inside_s + path.inter.latency_s)


def _tree_latency_s(path: AxisPath) -> float:
    """Up and down a binary tree over nodes."""
    return 2.0 * math.ceil(math.log2(path.nodes)) * path.inter.latency_s


def _level_s(collective: str, wire_bytes: float, ranks: int, link: Link) -> float:
    """One level by itself: its measured curve, else one latency per step of the ring."""
    if ranks == 1 or wire_bytes <= 0:
        return 0.0
    curve = link.collectives.get(collective)
    if curve is not None:
        return curve.seconds(wire_bytes, ranks)
    steps = {"all_reduce": 2 * (ranks - 1), "send": 1}.get(collective, ranks - 1)
    return steps * link.latency_s + wire_bytes / link.bytes_per_s
