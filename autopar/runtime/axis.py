"""One mesh axis as this rank sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Axis", "axes_of", "nested_index", "nested_size"]


@dataclass(frozen=True)
class Axis:
    """One mesh axis as this rank sees it. On an axis of size 1 every collective does nothing."""

    name: str
    size: int
    """Ranks along the axis."""
    index: int
    """This rank's coordinate, 0 ≤ index < size."""
    group_name: str
    """torch's name of the process group of the ranks along this axis; empty where there is none."""


def axes_of(mesh: DeviceMesh) -> dict[str, Axis]:
    """Return every axis of ``mesh`` by name, outermost first."""
    assert mesh.mesh_dim_names is not None
    return {
        name: Axis(name, mesh.size(position), mesh.get_local_rank(name), mesh.get_group(name).group_name)
        for position, name in enumerate(mesh.mesh_dim_names)
    }


def nested_size(axes: Iterable[Axis]) -> int:
    """Shards of a dim that is sharded over all ``axes``."""
    size = 1  # a loop: Dynamo traces it
    for axis in axes:
        size *= axis.size
    return size


def nested_index(axes: Iterable[Axis]) -> int:
    """This rank's shard of a dim that is sharded over ``axes``, outermost first."""
    index = 0
    for axis in axes:
        index = index * axis.size + axis.index
    return index
