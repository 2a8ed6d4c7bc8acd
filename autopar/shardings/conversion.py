"""Turning one layout into another: legal single-axis steps, their collectives, the cheapest path of steps.

A step changes the placement on one axis by one collective forward and its conjugate backward. A conversion
is the shortest path of such steps, so that an all-reduce over two axes becomes a reduce-scatter, a smaller
all-reduce and an all-gather where that is cheaper, without anybody saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from autopar.shardings.placement import (
    PARTIAL,
    REPLICATE,
    REPLICATE_PARTIAL,
    Layout,
    Placement,
    is_legal,
    local_blocks,
    local_shape,
)

__all__ = ["ConversionTable", "Step", "conversion_table", "legal_steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """One collective on one axis, with its conjugate in the backward pass."""

    axis: int
    """Position of the axis in the mesh."""
    source: Placement
    target: Placement
    forward: str
    """``nothing``, ``slice``, ``all_gather``, ``reduce_scatter``, ``all_reduce`` or ``all_to_all``."""
    backward: str
    """The same words, ``share`` (each rank takes an equal part of a full gradient) or ``pad`` (a slice's
    gradient amid zeros); ``nothing`` for tensors without gradient."""
    source_blocks: int = 1
    """Blocks of the sharded dim as one rank holds them, before."""
    target_blocks: int = 1
    """The same, after."""


def _collectives(source: Placement, target: Placement) -> tuple[str, str] | None:
    """Forward and backward collective of one step; None when one step cannot do it."""
    match source.kind, target.kind:
        case "R", "R|P":
            return "nothing", "all_reduce"
        case "P", "R":
            return "all_reduce", "nothing"
        case "P", "R|P":
            return "all_reduce", "all_reduce"
        case "S", "R|P":
            return "all_gather", "reduce_scatter"
        case "P", "S":
            return "reduce_scatter", "all_gather"
        case "S", "R":
            return "all_gather", "slice"
        case "R", "S":
            return "slice", "all_gather"
        case "R|P", "R":
            return "nothing", "share"
        case "R|P", "S":
            return "slice", "pad"
        case "S", "S" if source.dim != target.dim:
            return "all_to_all", "all_to_all"
    return None


def _is_innermost(layout: Layout, axis: int) -> bool:
    """True when no later axis cuts the same level of the same dim: only then is a step a plain collective."""
    mine = layout[axis]
    return not any(
        other.is_shard and (other.dim, other.blocks) == (mine.dim, mine.blocks)
        for other in layout[axis + 1 :]
    )


def legal_steps(
    shape: tuple[int, ...],
    layout: Layout,
    sizes: tuple[int, ...],
    alphabets: Sequence[Iterable[Placement]],
    *,
    requires_grad: bool,
) -> list[tuple[Step, Layout]]:
    """All single steps from ``layout`` to placements of each axis's alphabet, each with the layout it leaves."""
    found = []
    for axis, source in enumerate(layout):
        if source.is_shard and not _is_innermost(layout, axis):
            continue
        for target in alphabets[axis]:
            collectives = _collectives(source, target)
            if collectives is None:
                continue
            after = (*layout[:axis], target, *layout[axis + 1 :])
            if target.is_shard and not (_is_innermost(after, axis) and is_legal(shape, after, sizes)):
                continue
            forward, backward = collectives
            step = Step(
                axis,
                source,
                target,
                forward,
                backward if requires_grad else "nothing",
                local_blocks(layout, sizes, axis) if source.is_shard else 1,
                local_blocks(after, sizes, axis) if target.is_shard else 1,
            )
            found.append((step, after))
    return found


@dataclass(frozen=True, slots=True)
class ConversionTable:
    """Cheapest conversions between all layouts that one tensor may take on one mesh."""

    layouts: tuple[Layout, ...]
    seconds: np.ndarray
    """[from, to]: seconds of the cheapest path, forward and backward; inf where there is none."""
    first_hop: np.ndarray
    """[from, to]: index of the layout after the first step."""
    steps: dict[tuple[int, int], Step]
    """The single steps the paths are made of."""
    positions: dict[Layout, int]
    """Index of every layout."""

    def index(self, layout: Layout) -> int:
        return self.positions[layout]

    def path(self, source: Layout, target: Layout) -> list[Step]:
        """The steps from ``source`` to ``target``, in order."""
        here, goal = self.index(source), self.index(target)
        steps = []
        while here != goal:
            there = int(self.first_hop[here, goal])
            if there < 0:
                raise ValueError(f"no conversion from {source} to {target}")
            steps.append(self.steps[here, there])
            here = there
        return steps


StepPrice = Callable[[Step, int, int], float]
"""Seconds of a step, given the bytes one rank holds before and after it."""


def conversion_table(
    shape: tuple[int, ...],
    itemsize: int,
    shards: Sequence[Iterable[Placement]],
    sizes: tuple[int, ...],
    price: StepPrice,
    *,
    requires_grad: bool,
) -> ConversionTable:
    """All cheapest conversions among the legal layouts made of each axis's ``shards``, replication and sums."""
    gradient_partial = [REPLICATE_PARTIAL] if requires_grad else []
    alphabets = [(REPLICATE, *gradient_partial, PARTIAL, *sorted(mine, key=str)) for mine in shards]
    layouts = tuple(layout for layout in product(*alphabets) if is_legal(shape, layout, sizes))
    index = {layout: position for position, layout in enumerate(layouts)}
    count = len(layouts)
    seconds = np.full((count, count), np.inf)
    np.fill_diagonal(seconds, 0.0)
    first_hop = np.full((count, count), -1, dtype=np.int64)
    single: dict[tuple[int, int], Step] = {}
    local_bytes = [prod(local_shape(shape, layout, sizes)) * itemsize for layout in layouts]
    for here, layout in enumerate(layouts):
        for step, after in legal_steps(shape, layout, sizes, alphabets, requires_grad=requires_grad):
            there = index[after]
            seconds[here, there] = price(step, local_bytes[here], local_bytes[there])
            first_hop[here, there] = there
            single[here, there] = step
    _close(seconds, first_hop)
    return ConversionTable(layouts, seconds, first_hop, single, index)


def _close(seconds: np.ndarray, first_hop: np.ndarray) -> None:
    """Floyd and Warshall's shortest paths, in place."""
    for middle in range(len(seconds)):
        detour = seconds[:, middle, None] + seconds[None, middle, :]
        shorter = detour < seconds - 1e-15
        if shorter.any():
            seconds[shorter] = detour[shorter]
            first_hop[shorter] = np.broadcast_to(first_hop[:, middle, None], shorter.shape)[shorter]
