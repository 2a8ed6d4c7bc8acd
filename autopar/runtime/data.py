"""Data parallelism by FSDP2: parameters at rest sharded or replicated over data axes, gradients summed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from autopar.runtime.homes import is_elsewhere
from autopar.runtime.identity import Holder, holders, replace
from autopar.runtime.mesh import Mesh
from autopar.torch_private import add_axis_of_one, adopt_parameters, flatten_axes, join_axes

__all__ = [
    "computes_in",
    "data_parts",
    "end_step_at",
    "hold_at",
    "keeps_gradients_whole",
    "reduce_at",
    "rest",
    "shard_data",
]

LEVEL = "_autopar_zero"
"""Attribute of an FSDP2 module: its level, or ``WHOLE``."""
COMPUTE_DTYPE = "_autopar_compute_dtype"
"""Attribute of the root: what ``shard_data`` was told."""
WHOLE = 0
"""No axis shards the parameters: FSDP2 copies them for use and sums gradients over ranks that hold the same."""


def shard_data(
    module: nn.Module,
    blocks: Iterable[str],
    mesh: Mesh,
    *,
    replicate_axes: Sequence[str] = (),
    shard_axes: Sequence[str] = (),
    zero: int | Mapping[str, int] = 3,
    compute_dtype: torch.dtype = torch.float32,
) -> None:
    """Hand the module to FSDP2, block by block, over the data axes.

    Along ``shard_axes`` each rank keeps a part of every parameter, its gradient and optimizer state between steps.
    ``zero``, one level for all or one by path of block (``""`` for the root, 3 where a path is missing), says what
    is whole within a step:

    | level | parameters gathered                         | gradients reduce-scattered      |
    | ----- | ------------------------------------------- | ------------------------------- |
    | 3     | for forward, and again for backward         | at each microbatch              |
    | 2     | once, from first forward to last backward   | at each microbatch              |
    | 1     | once, from first forward to last backward   | once, after the last microbatch |

    (The root's own are gathered once per microbatch at level 3: its backward follows its forward at once.) Along
    ``replicate_axes`` each rank keeps the same as the others, and gradients are summed once, after the last
    microbatch. Gradients are *summed* over both, for losses are already shares of the mean over the global
    batch. ``blocks`` names the submodules that gather and reduce as one; what is left belongs to the root.
    Parameters are gathered in ``compute_dtype``; gradients are summed in float32. A parameter that is a DTensor
    over model axes becomes one over data and model axes. Dim 0 need not divide evenly.

    Parameters that other ranks of the pipeline hold are left alone. Parameter objects stay the same after
    ``keep_identity``. FSDP2 takes two model axes at most.

    Raises ValueError for a level that is not 1, 2 or 3.
    """
    setattr(module, COMPUTE_DTYPE, compute_dtype)
    replicate, shard = mesh.wide(replicate_axes), mesh.wide(shard_axes)
    if not replicate and not shard:
        return
    assert mesh.device_mesh is not None
    options: dict[str, Any] = {
        "mesh": _data_mesh(mesh.device_mesh, replicate, shard),
        "mp_policy": _precision(compute_dtype),
    }
    before = list(holders(module))
    here = [holder for holder in before if not is_elsewhere(holder.parameter)]
    scalars = [holder for holder in here if holder.parameter.ndim == 0]
    sharded = [holder for holder in here if holder.parameter.ndim]
    options["ignored_params"] = {h.parameter for h in before if is_elsewhere(h.parameter)} | {
        h.parameter for h in scalars
    }
    for path in sorted(set(blocks), key=lambda path: -path.count(".")):
        if _is_all_elsewhere(module.get_submodule(path)):
            continue
        level = _level(zero, path) if shard else WHOLE
        block = fully_shard(module.get_submodule(path), reshard_after_forward=level in (3, WHOLE), **options)
        setattr(block, LEVEL, level)
    setattr(fully_shard(module, **options), LEVEL, _level(zero, "") if shard else WHOLE)
    for holder in sharded:
        owner, attribute = holder.places[0]
        replace(holder, getattr(owner, attribute))
    _replicate(scalars, sharded)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            adopt_parameters(part)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply before it sums


def computes_in(module: nn.Module) -> torch.dtype:
    """The type in which a module computes, as ``shard_data`` was told; float32 where it was not called."""
    return getattr(module, COMPUTE_DTYPE, torch.float32)


def _is_all_elsewhere(block: nn.Module) -> bool:
    """Whether the block has parameters, and other ranks of the pipeline hold them all."""
    parameters = list(block.parameters())
    return bool(parameters) and all(is_elsewhere(parameter) for parameter in parameters)


def _level(zero: int | Mapping[str, int], path: str) -> int:
    level = zero if isinstance(zero, int) else zero.get(path, 3)
    if level not in (1, 2, 3):
        raise ValueError(f"ZeRO level of '{path}': 1, 2 or 3, not {level}")
    return level


def data_parts(module: nn.Module) -> list[FSDPModule]:
    """What gathers and reduces as one: the blocks, and the root."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def reduce_at(parts: Iterable[FSDPModule], *, is_last: bool, is_once: bool = False) -> None:
    """Say whether the next backward of these parts is their last one in a step: what is reduced and given back then.

    With ``is_once`` gradients are reduced after the last one alone, whatever the level. Without microbatches every
    backward is the last one, which is how ``shard_data`` leaves the module.
    """
    for part in parts:
        level = getattr(part, LEVEL)
        part.set_reshard_after_backward(is_last or level in (3, WHOLE), recurse=False)
        part.set_requires_gradient_sync(is_last or (level in (2, 3) and not is_once), recurse=False)
        part.set_requires_all_reduce(is_last, recurse=False)


def keeps_gradients_whole(parts: Iterable[FSDPModule]) -> bool:
    """Whether all parts reduce their gradients once in a step, after the last microbatch."""
    return all(getattr(part, LEVEL) in (1, WHOLE) for part in parts)


def hold_at(parts: Iterable[FSDPModule]) -> None:
    """Let backwards of these parts reduce and give back nothing, until ``reduce_at`` says otherwise."""
    for part in parts:
        part.set_is_last_backward(False)
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.set_requires_gradient_sync(False, recurse=False)


def end_step_at(parts: Iterable[FSDPModule], *, is_last: bool) -> None:
    """Say whether the next backward is the last one of the step, which waits for all reductions under way."""
    for part in parts:
        part.set_is_last_backward(is_last)


def rest(module: nn.Module) -> None:
    """Give back what FSDP2 still holds gathered after a forward whose backward has not come.

    It would be read again by the next forward, although an optimizer or the user has changed the parameters
    at rest since; and ``parameters()`` would list it instead of them. A backward gathers it anew.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _replicate(scalars: list[Holder], sharded: list[Holder]) -> None:
    """FSDP2 takes no scalars: they become replicated DTensors on the mesh of the others.

    Their gradients are summed by the program itself, which reads them as ``R|R``.
    """
    if not sharded:
        return
    like = getattr(sharded[0].places[0][0], sharded[0].places[0][1])
    for holder in scalars:
        old = holder.parameter
        value = old.to_local() if isinstance(old, DTensor) else old
        placements = [Replicate()] * like.device_mesh.ndim
        whole = DTensor.from_local(value.detach(), like.device_mesh, placements, run_check=False)
        replace(holder, nn.Parameter(whole, requires_grad=old.requires_grad))


def _precision(compute_dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Forwards cast what they read by themselves, so FSDP2 must leave their inputs alone."""
    if compute_dtype is torch.float32:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _data_mesh(mesh: DeviceMesh, replicate: tuple[str, ...], shard: tuple[str, ...]) -> DeviceMesh:
    """FSDP2's mesh: one axis that shards, or one that replicates and one that shards."""
    if not replicate:
        return flatten_axes(mesh, shard)
    if not shard:
        return add_axis_of_one(flatten_axes(mesh, replicate), "whole")
    return join_axes([flatten_axes(mesh, replicate), flatten_axes(mesh, shard)])
