"""Axes of four ranks, for functions that run inside the pool."""

from __future__ import annotations

from functools import cache

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from autopar.runtime.axis import Axis, axes_of

NAMES = ("outer", "inner")


@cache
def mesh_axes(shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """The axes of a mesh of four ranks, outermost first."""
    names = NAMES[: len(shape)]
    axes = axes_of(init_device_mesh("cpu", shape, mesh_dim_names=names))
    return tuple(axes[name] for name in names)


def piece(whole: Tensor, axes: tuple[Axis, ...], dim: int, blocks: int = 1) -> Tensor:
    """This rank's shard over nested axes, said in another way than the runtime says it."""
    import torch

    for axis in axes:
        whole = torch.cat(
            [block.chunk(axis.size, dim)[axis.index] for block in whole.chunk(blocks, dim)], dim
        )
    return whole


def total(partial: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The sum of a Partial value over the axes, without the code under test."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group

    result = partial.detach().clone()
    for axis in axes:
        if axis.size > 1:
            dist.all_reduce(result, group=_resolve_process_group(axis.group_name))
    return result
