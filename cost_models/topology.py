"""Devices and the links between them, and how a mesh axis crosses these links."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cost_models.curves import CollectiveCurve, CollectiveTable
from cost_models.device import Device

__all__ = ["AxisPath", "Cluster", "Link", "joined_path", "mesh_axes"]


@dataclass(frozen=True, slots=True)
class Link:
    """One level of the network, as one device sees it."""

    name: str
    latency_s: float
    """Seconds of one hop, however small the message."""
    bytes_per_s: float
    """Bus bandwidth of one device in one direction."""
    source: str
    collectives: Mapping[str, CollectiveCurve | CollectiveTable] = field(default_factory=dict, hash=False)
    """Measured curves of ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all`` and ``send``."""

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and self.bytes_per_s > 0):
            raise ValueError(
                f"link {self.name!r}: latency {self.latency_s} s, bandwidth {self.bytes_per_s} B/s"
            )


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal nodes of equal devices; ranks count through one node after the other."""

    name: str
    device: Device
    nodes: int
    devices_per_node: int
    intra: Link
    """Between the devices of one node."""
    inter: Link
    """Between nodes; its bandwidth is one device's share of the node's network cards."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.devices_per_node < 1:
            raise ValueError(f"cluster {self.name!r}: {self.nodes} nodes × {self.devices_per_node} devices")

    @property
    def devices(self) -> int:
        """Devices in the whole cluster."""
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, slots=True)
class AxisPath:
    """How the groups of one mesh axis lie in the cluster; the worst group, where they differ."""

    ranks: int
    """Ranks of one group."""
    ranks_per_node: int
    """Ranks of one group that share a node."""
    nodes: int
    """Nodes that one group spans."""
    intra: Link
    inter: Link

    @property
    def crosses_nodes(self) -> bool:
        """True when the group communicates over the network."""
        return self.nodes > 1

    @property
    def link(self) -> Link:
        """The slowest link of the group."""
        return self.inter if self.crosses_nodes else self.intra


def mesh_axes(cluster: Cluster, sizes: Sequence[int]) -> tuple[AxisPath, ...]:
    """The path of each axis of a mesh of ``sizes`` (outermost first, row-major over consecutive ranks).

    A mesh smaller than the cluster (the submesh of a pipeline stage) is taken to start at a multiple of its
    own size. Raises ``ValueError`` when the mesh has more ranks than the cluster has devices.
    """
    if min(sizes, default=1) < 1 or math.prod(sizes) > cluster.devices:
        raise ValueError(
            f"a mesh of {' × '.join(map(str, sizes)) or 'no axes'} needs {math.prod(sizes)} ranks: "
            f"the cluster {cluster.name} has {cluster.devices}"
        )
    return tuple(_axis_path(cluster, tuple(sizes), axis) for axis in range(len(sizes)))


def _axis_path(cluster: Cluster, sizes: tuple[int, ...], axis: int) -> AxisPath:
    ranks_per_node, nodes = _spread(sizes, axis, cluster.devices_per_node)
    return AxisPath(sizes[axis], ranks_per_node, nodes, cluster.intra, cluster.inter)


@lru_cache(maxsize=65536)
def _spread(sizes: tuple[int, ...], axis: int, devices_per_node: int) -> tuple[int, int]:
    """(ranks on one node, nodes) of the group of ``axis`` that spans the most nodes."""
    ranks, stride = sizes[axis], math.prod(sizes[axis + 1 :])
    spreads = {
        _group_spread(first, stride, ranks, devices_per_node)
        for first in _first_ranks(ranks, stride, math.prod(sizes), devices_per_node)
    }
    nodes, ranks_per_node = max(spreads, key=lambda spread: (spread[0], -spread[1]))
    return ranks_per_node, nodes


def _first_ranks(ranks: int, stride: int, world: int, devices_per_node: int) -> list[int]:
    """First ranks of the groups to look at: one where all groups lie alike, else every group."""
    lies_alike = devices_per_node % stride == 0 and (
        devices_per_node % (stride * ranks) == 0 or (stride * ranks) % devices_per_node == 0
    )
    if lies_alike or stride % devices_per_node == 0:
        return [0]
    return [base + offset for base in range(0, world, stride * ranks) for offset in range(stride)]


def _group_spread(first: int, stride: int, ranks: int, devices_per_node: int) -> tuple[int, int]:
    """(nodes, fewest ranks on one node but the last) of one group."""
    nodes = [(first + stride * index) // devices_per_node for index in range(ranks)]
    counts = [len(list(run)) for _, run in itertools.groupby(nodes)]
    return len(counts), min(counts[:-1], default=counts[0]) if len(counts) > 1 else counts[0]


def joined_path(paths: Sequence[AxisPath]) -> AxisPath:
    """The path of groups that span several axes of one mesh: a gradient reduced over two data axes."""
    if not paths:
        raise ValueError("a group needs at least one axis")
    return AxisPath(
        ranks=math.prod(path.ranks for path in paths),
        ranks_per_node=math.prod(path.ranks_per_node for path in paths),
        nodes=math.prod(path.nodes for path in paths),
        intra=paths[0].intra,
        inter=paths[0].inter,
    )
