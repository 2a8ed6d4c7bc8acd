"""What each mesh axis does to one tensor, forward and backward, as text that round-trips.

Along one axis a tensor is in one of four states (DESIGN, section 4):

=========  ===================  ====================  ==========================================
text       forward              gradient              meaning
=========  ===================  ====================  ==========================================
``S(d)``   sharded on dim d     sharded on dim d      each rank holds its slice
``R``      replicated           replicated            each rank holds all of it
``R|P``    replicated           partial sum           the ranks' gradients must be added up
``P``      partial sum          replicated            the ranks' tensors must be added up
=========  ===================  ====================  ==========================================

``S(d)x3`` shards dim d *in blocks*: the dim is viewed as (3, size / 3) and the inner part is sharded.
It is what remains when a fused q, k, v projection is split by heads, or when a sequence-sharded batch is
flattened to tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from math import prod

__all__ = [
    "PARTIAL",
    "REPLICATE",
    "REPLICATE_PARTIAL",
    "Layout",
    "Placement",
    "format_layout",
    "is_legal",
    "local_blocks",
    "local_shape",
    "parse_layout",
    "parse_placement",
    "shard",
    "without_gradient",
]


@dataclass(frozen=True, slots=True)
class Placement:
    """The state of one tensor along one mesh axis."""

    kind: str
    """``S``, ``R``, ``R|P`` or ``P``."""
    dim: int = -1
    """The sharded dim, for ``S``."""
    blocks: int = 1
    """Blocks that are sharded one by one, for ``S``."""

    def __str__(self) -> str:
        if self.kind != "S":
            return self.kind
        return f"S({self.dim})" + (f"x{self.blocks}" if self.blocks > 1 else "")

    @property
    def is_shard(self) -> bool:
        return self.kind == "S"


REPLICATE = Placement("R")
REPLICATE_PARTIAL = Placement("R|P")
PARTIAL = Placement("P")

Layout = tuple[Placement, ...]
"""One placement per mesh axis, in mesh order."""

_SHARD = re.compile(r"S\((\d+)\)(?:x(\d+))?")


@cache
def shard(dim: int, blocks: int = 1) -> Placement:
    """``S(dim)``, in blocks where asked."""
    return Placement("S", dim, blocks)


def parse_placement(text: str) -> Placement:
    """The placement written as ``text``; ``ValueError`` names what is legal."""
    match = _SHARD.fullmatch(text)
    if match:
        return shard(int(match[1]), int(match[2] or 1))
    if text in ("R", "R|P", "P"):
        return {"R": REPLICATE, "R|P": REPLICATE_PARTIAL, "P": PARTIAL}[text]
    raise ValueError(f"'{text}' is not a placement: write S(dim), S(dim)xBLOCKS, R, R|P or P")


def format_layout(layout: Layout, axes: tuple[str, ...]) -> str:
    """``dp:S(0) tp:R``; empty on a mesh without axes."""
    return " ".join(f"{axis}:{placement}" for axis, placement in zip(axes, layout, strict=True))


def parse_layout(text: str, axes: tuple[str, ...]) -> Layout:
    """The inverse of :func:`format_layout`; axes that are not named are replicated."""
    named: dict[str, Placement] = {}
    for item in text.split():
        axis, _, placement = item.partition(":")
        if axis not in axes:
            raise ValueError(
                f"layout '{text}' names the axis '{axis}'; the mesh has {', '.join(axes) or 'none'}"
            )
        named[axis] = parse_placement(placement)
    return tuple(named.get(axis, REPLICATE) for axis in axes)


def local_shape(shape: tuple[int, ...], layout: Layout, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one rank's piece."""
    local = list(shape)
    for placement, size in zip(layout, sizes, strict=True):
        if placement.is_shard:
            local[placement.dim] //= size
    return tuple(local)


@lru_cache(maxsize=100_000)
def is_legal(shape: tuple[int, ...], layout: Layout, sizes: tuple[int, ...]) -> bool:
    """True when every sharded dim divides evenly, and blocks of several axes on one dim nest."""
    by_dim: dict[int, dict[int, int]] = {}
    for placement, size in zip(layout, sizes, strict=True):
        if placement.is_shard:
            if placement.dim >= len(shape):
                return False
            levels = by_dim.setdefault(placement.dim, {})
            levels[placement.blocks] = levels.get(placement.blocks, 1) * size
    return all(_levels_nest(shape[dim], levels) for dim, levels in by_dim.items())


def _levels_nest(size: int, ways_by_blocks: dict[int, int]) -> bool:
    """Levels from the outside in: each must cut evenly, and whole blocks of the next must stay together."""
    levels = sorted(ways_by_blocks.items())
    for (blocks, ways), (inner_blocks, _) in pairwise(levels):
        if inner_blocks % (blocks * ways):
            return False
    blocks, ways = levels[-1]
    return size % (blocks * ways) == 0


def local_blocks(layout: Layout, sizes: tuple[int, ...], axis: int) -> int:
    """Blocks of ``axis``'s sharded dim that one rank holds, after the other axes took their share."""
    mine = layout[axis]
    outer = prod(
        size
        for other, size in zip(layout, sizes, strict=True)
        if other.is_shard and other.dim == mine.dim and other.blocks < mine.blocks
    )
    return mine.blocks // outer


def without_gradient(layout: Layout) -> Layout:
    """The same layout for a tensor that has no gradient: ``R|P`` says no more than ``R``."""
    return tuple(REPLICATE if p is REPLICATE_PARTIAL or p.kind == "R|P" else p for p in layout)
