"""What a program says about one parameter: its name, its whole shape, and its layout at rest.

A dim that is sharded in blocks, ``S(0)x3``, is cut inside each of three equal runs, so a rank's shard is
not one contiguous run of rows and no plain DTensor placement describes it. (torch's private strided shard
does, but FSDP2 cannot shard it again on the same dim, and ``torch.distributed.checkpoint`` takes it for a
contiguous run and loads wrong rows.) Such a parameter is *stored* with its rows in the order of the ranks
that hold them, as an ordinary ``Shard(0)``; ``stored_order`` is that order. State dicts are in the plain
model's order again: see ``autopar.runtime.state``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from autopar.runtime.blocks import local_shard

__all__ = ["Parameter", "Sharding", "stored_order", "to_plain_order", "to_stored_order"]

_PLACEMENT = re.compile(r"(\w+):(?:S\((\d+)\)(?:x(\d+))?|R(?:\|P)?)")


@dataclass(frozen=True)
class Sharding:
    """One axis shards one dim, in blocks."""

    axis: str
    dim: int
    blocks: int = 1


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer, and its layout at rest along the axes that operators shard it over."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = ""
    """``tp:S(0)``, ``tp:S(0)x3 ep:S(1)``; axes that are not named, or named ``R``, hold it whole."""
    requires_grad: bool = True
    is_buffer: bool = False
    is_persistent: bool = True
    """False for a buffer that state dicts leave out."""
    alias_of: str | None = None
    """For tied weights: the name under which ``named_parameters()`` lists the tensor."""
    stages: tuple[int, ...] = ()
    """Pipeline stages that use it, under this name or another; without any, the first rank holds it."""

    def __post_init__(self) -> None:
        for sharding in self.shardings:
            if sharding.dim >= len(self.shape):
                raise ValueError(
                    f"parameter {self.name} has {len(self.shape)} dims; {self.layout} shards another"
                )

    @property
    def shardings(self) -> tuple[Sharding, ...]:
        """What shards the parameter, in the order of the layout."""
        return _shardings(self.layout)

    def sharding_of(self, axis: str) -> Sharding | None:
        """What the axis shards; None where it holds the parameter whole."""
        return next((sharding for sharding in self.shardings if sharding.axis == axis), None)


@cache
def _shardings(layout: str) -> tuple[Sharding, ...]:
    found = []
    for item in layout.split():
        match = _PLACEMENT.fullmatch(item)
        if match is None:
            raise ValueError(f"'{item}' is not axis:S(dim), axis:S(dim)xBLOCKS or axis:R")
        if match[2] is not None:
            found.append(Sharding(match[1], int(match[2]), int(match[3] or 1)))
    return tuple(found)


def stored_order(parameter: Parameter, sizes: Mapping[str, int]) -> tuple[tuple[int, Tensor], ...]:
    """(dim, order) for every dim whose rows are not stored as the plain model has them.

    ``order[i]`` is the plain row at place i of the stored tensor. ``sizes`` are the ranks along each axis, in
    mesh order, outermost first: the shards follow each other in that order.

    Raises ValueError when a dim does not divide evenly.
    """
    found = []
    for dim in dict.fromkeys(sharding.dim for sharding in parameter.shardings):
        order = _order(parameter, dim, sizes)
        if not torch.equal(order, torch.arange(parameter.shape[dim])):
            found.append((dim, order))
    return tuple(found)


def _order(parameter: Parameter, dim: int, sizes: Mapping[str, int]) -> Tensor:
    """Rows in the order of the ranks that hold them. The axis with the fewest blocks cuts first."""
    mine = {sharding.axis: sharding for sharding in parameter.shardings if sharding.dim == dim}
    axes = [name for name in sizes if name in mine]
    rows = torch.arange(parameter.shape[dim])
    shards = []
    for indices in product(*(range(sizes[name]) for name in axes)):
        shard = rows
        index_of = dict(zip(axes, indices, strict=True))
        for name in sorted(axes, key=lambda name: mine[name].blocks):
            coarser = prod(sizes[other] for other in axes if mine[other].blocks < mine[name].blocks)
            shard = local_shard(shard, 0, sizes[name], mine[name].blocks // coarser, index_of[name])
        shards.append(shard)
    return torch.cat(shards)


def to_stored_order(plain: Tensor, orders: tuple[tuple[int, Tensor], ...]) -> Tensor:
    """Return a whole tensor with its rows as they are stored."""
    for dim, order in orders:
        plain = plain.index_select(dim, order.to(plain.device))
    return plain


def to_plain_order(stored: Tensor, orders: tuple[tuple[int, Tensor], ...]) -> Tensor:
    """Undo ``to_stored_order``."""
    for dim, order in orders:
        stored = stored.index_select(dim, order.argsort().to(stored.device))
    return stored
