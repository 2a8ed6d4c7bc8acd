"""The batch: where the caller passes each tensor, and which slice of it a rank reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from autopar.errors import PlanMismatchError
from autopar.runtime.axis import Axis
from autopar.runtime.blocks import local_shard
from autopar.runtime.parameter import Parameter, Sharding
from autopar.torch_private import flatten_with_paths, rebuild

__all__ = ["Input", "local_inputs", "shard_inputs", "slices"]

MICROBATCH = "microbatch"
"""What layouts call the cut into slices that run one after the other."""


@dataclass(frozen=True)
class Input:
    """One tensor of the global batch."""

    path: str
    """``0`` for the first positional argument, ``labels`` for a keyword."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = ""
    """How a rank reads it: ``dp_shard:S(0) microbatch:S(0)``; axes that are not named hold it whole.

    ``microbatch`` is no axis of the mesh: it says which dim of a rank's slice is cut into microbatches.
    """

    @property
    def shardings(self) -> tuple[Sharding, ...]:
        """What shards the tensor over ranks, outermost first."""
        return tuple(sharding for sharding in self._all if sharding.axis != MICROBATCH)

    @property
    def microbatch_dim(self) -> int | None:
        """Which dim is cut into microbatches; None for a tensor that each microbatch reads whole."""
        return next((sharding.dim for sharding in self._all if sharding.axis == MICROBATCH), None)

    @property
    def _all(self) -> tuple[Sharding, ...]:
        return Parameter(self.path, self.shape, self.dtype, self.layout).shardings

    def microbatches(self, local: Tensor, count: int) -> tuple[Tensor, ...]:
        """A rank's slice as each of ``count`` microbatches reads it.

        Raises ``PlanMismatchError`` when its dim does not divide evenly.
        """
        dim = self.microbatch_dim
        if dim is None:
            return (local,) * count
        if local.shape[dim] % count:
            raise PlanMismatchError(
                f"dim {dim} of input '{self.path}' {list(local.shape)} does not divide into {count} microbatches: "
                "plan again for this batch"
            )
        return local.chunk(count, dim)

    def local_shape(self, axes: Mapping[str, Axis]) -> tuple[int, ...]:
        """The shape of one rank's slice."""
        local = list(self.shape)
        for sharding in self.shardings:
            local[sharding.dim] //= axes[sharding.axis].size
        return tuple(local)

    def local(self, tensor: Tensor, axes: Mapping[str, Axis]) -> Tensor:
        """This rank's slice of a global tensor; a tensor that is one already passes as it is.

        Raises ``PlanMismatchError`` for any other shape.
        """
        wanted = self.local_shape(axes)
        if tuple(tensor.shape) == wanted:
            return tensor
        if tuple(tensor.shape) != self.shape:
            slices = f", or {list(wanted)} for this rank's slice" if wanted != self.shape else ""
            raise PlanMismatchError(
                f"input '{self.path}' has the shape {list(tensor.shape)}; the plan is for the global batch "
                f"{list(self.shape)}{slices}. Pass that shape, or plan again for this one."
            )
        for sharding in self.shardings:
            axis = axes[sharding.axis]
            tensor = local_shard(tensor, sharding.dim, axis.size, sharding.blocks, axis.index)
        return tensor


def _by_path(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    leaves, _ = flatten_with_paths((args, dict(kwargs)))
    return {_path(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _path(path: str) -> str:
    """A path below (args, kwargs), as the caller sees it."""
    return path.partition(".")[2]


def local_inputs(
    inputs: Sequence[Input], axes: Mapping[str, Axis], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """This rank's slices of everything the program reads, in the order of ``inputs``.

    Raises ``PlanMismatchError`` for tensors that are missing, unexpected or of another shape or dtype.
    """
    given = _by_path(args, kwargs)
    wanted = {each.path for each in inputs}
    for path in given.keys() - wanted:
        raise PlanMismatchError(
            f"input '{path}' was not there when the plan was made. Leave it out, or plan again."
        )
    found = []
    for each in inputs:
        if each.path not in given:
            raise PlanMismatchError(
                f"the plan reads the input '{each.path}', which is missing. Pass it, or plan again."
            )
        tensor = given[each.path]
        if tensor.is_floating_point() and each.dtype.is_floating_point:
            tensor = tensor.to(each.dtype)
        if tensor.dtype != each.dtype:
            raise PlanMismatchError(f"input '{each.path}' is {tensor.dtype}, the plan is for {each.dtype}.")
        found.append(each.local(tensor, axes))
    return found


def shard_inputs(
    inputs: Sequence[Input], axes: Mapping[str, Axis], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The arguments with every tensor cut to this rank's slice: a tuple, a dict, or the one positional argument."""
    leaves, tree = flatten_with_paths((args, dict(kwargs)))
    known = {each.path: each for each in inputs}
    local = [
        known[_path(path)].local(leaf, axes) if isinstance(leaf, Tensor) and _path(path) in known else leaf
        for path, leaf in leaves
    ]
    sliced_args, sliced_kwargs = rebuild(local, tree)
    if sliced_kwargs:
        return sliced_kwargs if not sliced_args else (*sliced_args, sliced_kwargs)
    return sliced_args[0] if len(sliced_args) == 1 else sliced_args


def slices(inputs: Sequence[Input], axes: Mapping[str, Axis]) -> tuple[int, int]:
    """(which slice of dim 0 this rank reads, how many slices there are), by the first tensor that has a batch."""
    for each in inputs:
        sharding = [axes[s.axis] for s in each.shardings if s.dim == 0]
        if each.shape:
            index = 0
            for axis in sharding:
                index = index * axis.size + axis.index
            return index, prod(axis.size for axis in sharding)
    return 0, 1
