"""Which ranks of a pipeline hold which parameter; the others hold it empty, under the same name.

A parameter that is elsewhere is a DTensor of the whole shape on the mesh of the ranks that hold it: this rank
has no part of it, so its local tensor is empty, it never has a gradient, optimizers pass it over, and
``torch.distributed.checkpoint`` leaves it to its holders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Replicate

from autopar.runtime.mesh import PIPELINE, Mesh
from autopar.runtime.parameter import Parameter
from autopar.torch_private import mesh_of_others

__all__ = ["Homes", "elsewhere", "homes_of", "is_elsewhere"]


def homes_of(parameters: Sequence[Parameter], ranks: int) -> tuple[int, ...]:
    """Ranks along ``pp`` that hold a tensor known under these records: those whose stages use it, or the first."""
    stages = {stage for parameter in parameters for stage in parameter.stages}
    return tuple(sorted({stage % ranks for stage in stages})) or (0,)


def elsewhere(like: Tensor, home: int, mesh: Mesh) -> DTensor:
    """A tensor of the shape and dtype of ``like`` of which this rank holds nothing; ``home`` holds it."""
    assert mesh.device_mesh is not None
    others = mesh_of_others(mesh.device_mesh, PIPELINE, home)
    nothing = torch.empty(0, dtype=like.dtype, device=mesh.device)
    shape = like.shape or torch.Size([1])  # from_local takes no scalar
    stride = torch.empty(shape, device="meta").stride()
    placements = [Replicate()] * others.ndim
    empty = DTensor.from_local(nothing, others, placements, run_check=False, shape=shape, stride=stride)
    return empty if like.ndim else empty.reshape(())  # type: ignore[return-value]


def is_elsewhere(tensor: object) -> bool:
    """Whether other ranks hold the tensor, and this one nothing of it."""
    return isinstance(tensor, DTensor) and tensor.device_mesh.get_coordinate() is None


@dataclass(frozen=True)
class Homes:
    """Where each parameter and buffer of a pipelined module lives."""

    rank: int
    """This rank's coordinate along ``pp``."""
    ranks: int
    group: ProcessGroup
    device: torch.device
    of: Mapping[str, tuple[int, ...]]
    """Coordinates along ``pp`` of the ranks that hold a tensor, by any of its names."""

    @classmethod
    def from_records(cls, parameters: Sequence[Parameter], mesh: Mesh) -> Homes | None:
        """None where all stages are on one rank."""
        axis = mesh.axes.get(PIPELINE)
        if axis is None or axis.size == 1:
            return None
        assert mesh.device_mesh is not None
        same: dict[str, list[Parameter]] = {}
        for parameter in parameters:
            same.setdefault(parameter.alias_of or parameter.name, []).append(parameter)
        found = {p.name: homes_of(records, axis.size) for records in same.values() for p in records}
        return cls(axis.index, axis.size, mesh.device_mesh.get_group(PIPELINE), mesh.device, found)

    def is_first(self, name: str) -> bool:
        """Whether this rank is the first that holds the tensor: each tensor has one such rank along ``pp``."""
        return self.of[name][0] == self.rank

    def shared(self, name: str, tensor: Tensor | None, like: Tensor) -> Tensor:
        """What the first holder has under a name, on all ranks along ``pp``; ``like`` has its shape and dtype."""
        mine = tensor if self.is_first(name) else None
        whole = torch.empty(like.shape, dtype=like.dtype, device=self.device) if mine is None else mine
        return self.broadcast(whole.contiguous(), self.of[name][0])

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Overwrite ``tensor`` with that of ``source``, a coordinate along ``pp``; return it."""
        dist.broadcast(tensor, src=dist.get_global_rank(self.group, source), group=self.group)
        return tensor

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag, true where it is on any rank along ``pp``."""
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in found.tolist()]

    def merged(self, mine: Any) -> dict[str, Any]:
        """What the first holder of each tensor has under its name, on all ranks along ``pp``."""
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, dict(mine), group=self.group)
        names = dict.fromkeys(name for entries in found for name in entries)
        return {name: found[self.of[name][0]][name] for name in names}

    def total_norm(self, norm: Tensor, norm_type: float) -> Tensor:
        """The norm of all that the ranks along ``pp`` have norms of."""
        if norm_type == torch.inf:
            dist.all_reduce(norm, dist.ReduceOp.MAX, group=self.group)
            return norm
        power = norm**norm_type
        dist.all_reduce(power, group=self.group)
        return power ** (1 / norm_type)

    def sum_over_homes(self, name: str, tensor: Tensor) -> Tensor:
        """The sum of what all holders have under a name: the same bits on each of them. Holders call it."""
        peers = [home for home in self.of[name] if home != self.rank]
        found = {peer: torch.empty_like(tensor) for peer in peers} | {self.rank: tensor}
        operations = []
        for peer in peers:
            rank = dist.get_global_rank(self.group, peer)
            operations.append(dist.P2POp(dist.isend, tensor, rank, self.group))
            operations.append(dist.P2POp(dist.irecv, found[peer], rank, self.group))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        total = found[self.of[name][0]].clone()
        for home in self.of[name][1:]:
            total += found[home]
        return total
