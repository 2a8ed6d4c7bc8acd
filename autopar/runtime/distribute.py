"""From a plain module to parameters at rest: DTensors under the same names, on this rank's device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from autopar.errors import PlanMismatchError
from autopar.runtime.homes import elsewhere, homes_of
from autopar.runtime.identity import Holder, holders, replace
from autopar.runtime.mesh import PIPELINE, Mesh
from autopar.runtime.parameter import Parameter, stored_order, to_stored_order

__all__ = ["distribute", "local", "orders_at_rest"]


def local(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return this rank's shard of a parameter, or the parameter itself where it is whole, in ``dtype``.

    The gradient comes back in the parameter's own layout: along an axis that holds it whole it must be
    whole too, which is what ``sum_gradient`` is for.
    """
    shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return shard if dtype is None else shard.to(dtype)


def distribute(
    module: nn.Module,
    parameters: Iterable[Parameter],
    mesh: Mesh,
    model_axes: Sequence[str] = (),
    *,
    broadcast: bool = True,
) -> None:
    """Move the module to this rank's device and shard its parameters over the model axes, in place.

    ``model_axes`` are the axes that operators shard over (tensor, context, expert), not those of data
    parallelism; where one of them has several ranks, *every* parameter becomes a DTensor over all of them.
    Names, tied weights and ``requires_grad`` stay; so do the parameter objects after ``keep_identity``.
    Parameters of stages that run on other ranks of the pipeline become empty: see ``autopar.runtime.homes``.
    With ``broadcast`` rank 0's values win, so that ranks may have initialised theirs differently. Parameters
    on the meta device stay there.

    Raises PlanMismatchError when the module's parameters are not those of ``parameters``.
    """
    table = {parameter.name: parameter for parameter in parameters}
    orders = orders_at_rest(table.values(), mesh, model_axes)
    names = mesh.wide(model_axes)
    found = list(holders(module))
    for holder in found:
        _check(holder, table)
    pipeline = mesh.axes.get(PIPELINE)
    for holder in found:
        record = table[holder.names[0]]
        whole = _whole(holder.parameter, mesh.device, broadcast)
        if pipeline is not None and pipeline.size > 1:
            homes = homes_of([table[name] for name in holder.names if name in table], pipeline.size)
            if pipeline.index not in homes:
                empty = elsewhere(whole, homes[0], mesh)
                replace(holder, nn.Parameter(empty, requires_grad=holder.parameter.requires_grad))
                continue
        if not names:
            holder.parameter.data = whole
            continue
        assert mesh.device_mesh is not None
        placements = [_placement(record, name) for name in names]
        stored = to_stored_order(whole, orders.get(record.name, ()))
        sharded = distribute_tensor(stored, mesh.device_mesh[names], placements, src_data_rank=None)
        replace(holder, nn.Parameter(sharded, requires_grad=holder.parameter.requires_grad))
    _move_buffers(module, mesh.device, broadcast)


def orders_at_rest(
    parameters: Iterable[Parameter], mesh: Mesh, model_axes: Sequence[str]
) -> dict[str, tuple[tuple[int, Tensor], ...]]:
    """``stored_order`` of the parameters whose rows are not stored in the plain model's order, by name.

    Raises ValueError for a buffer with a sharded layout and for dims that do not divide evenly.
    """
    sizes: Mapping[str, int] = {name: mesh.axes[name].size for name in mesh.wide(model_axes)}
    found = {}
    for parameter in parameters:
        shards = [s for s in parameter.shardings if s.axis in sizes]
        if shards and parameter.is_buffer:
            raise ValueError(
                f"buffer {parameter.name} is held whole by every rank; its layout is {parameter.layout}"
            )
        for dim in {s.dim for s in shards}:
            ways = [sizes[s.axis] for s in shards if s.dim == dim]
            _check_even(parameter, dim, ways)
        if order := stored_order(parameter, sizes):
            found[parameter.name] = order
    return found


def _check_even(parameter: Parameter, dim: int, ways: Sequence[int]) -> None:
    shards = 1
    for count in ways:
        shards *= count
    if parameter.shape[dim] % shards:
        raise ValueError(
            f"dim {dim} of {parameter.name} {parameter.shape} does not divide into {shards} shards"
        )


def _check(holder: Holder, table: Mapping[str, Parameter]) -> None:
    name, shape = holder.names[0], tuple(holder.parameter.shape)
    if name not in table:
        raise PlanMismatchError(
            f"the module has a parameter {name} {shape} that the program does not know: "
            "make a plan for this model"
        )
    if table[name].shape != shape:
        raise PlanMismatchError(
            f"parameter {name} has shape {shape}, the program is made for {table[name].shape}: "
            "make a plan for this model"
        )


def _whole(tensor: Tensor, device: torch.device, broadcast: bool) -> Tensor:
    """The whole tensor on the device, the same on every rank if so wished."""
    if tensor.is_meta:
        return tensor.detach()
    whole = tensor.detach().to(device).contiguous()
    if broadcast and dist.is_initialized():
        dist.broadcast(whole, src=0)
    return whole


def _placement(parameter: Parameter, axis: str) -> Placement:
    sharding = parameter.sharding_of(axis)
    return Replicate() if sharding is None else Shard(sharding.dim)


def _move_buffers(module: nn.Module, device: torch.device, broadcast: bool) -> None:
    for owner in module.modules():
        for attribute, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, attribute, _whole(buffer, device, broadcast))
