"""All strategies of one operator on one mesh, with the layouts they imply.

For each mesh axis a strategy shards one factor, or none. An axis that shards nothing may still pass partial
gradients back through the operator (``grad``: right for every operator, as the backward is linear in the
incoming gradient) or, through linear operators, partial sums forward (``sum``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from autopar.capture.graph import Value
from autopar.shardings.blocks import BlockTable
from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, Loops
from autopar.shardings.placement import (
    PARTIAL,
    REPLICATE,
    REPLICATE_PARTIAL,
    Layout,
    Placement,
    is_legal,
    shard,
    without_gradient,
)

__all__ = [
    "GRADIENT",
    "NONE",
    "SUM",
    "AxisChoice",
    "Strategy",
    "axis_choices",
    "combined",
    "divides",
    "strategies",
]

NONE, GRADIENT, SUM = "-", "grad", "sum"


@dataclass(frozen=True, slots=True)
class AxisChoice:
    """What a strategy does on one axis, and the placements that follow."""

    name: str
    """The factor (``o``, ``o x3`` in blocks), or ``-``, ``grad``, ``sum``; ``sum0``, ``sum1`` where each
    of several operands may be the partial one."""
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]
    factor: str = ""
    """The factor alone; empty where nothing is sharded."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One candidate for one operator."""

    names: tuple[str, ...]
    """The choice on each axis."""
    factors: tuple[str, ...]
    """The sharded factor on each axis, empty where none is."""
    operands: tuple[Layout, ...]
    """Layouts the operator wants its operands in, one per mention."""
    results: tuple[Layout, ...]
    """Layouts it leaves its results in."""


def _shard_of(dim_factors: tuple[Dim, ...], factor: str, blocks: int) -> Placement | None:
    """Placement of a tensor along an axis that shards ``factor``; None when the tensor does not hold it."""
    for position, dim in enumerate(dim_factors):
        for held in dim:
            if held.name == factor:
                return shard(position, held.blocks * blocks)
    return None


def _factor_choice(loops: Loops, factor: str, blocks: int) -> AxisChoice:
    absent = REPLICATE if factor in loops.internal else PARTIAL
    return AxisChoice(
        name=factor + (f" x{blocks}" if blocks > 1 else ""),
        operands=tuple(_shard_of(dims, factor, blocks) or REPLICATE_PARTIAL for dims in loops.operands),
        results=tuple(_shard_of(dims, factor, blocks) or absent for dims in loops.results),
        factor=factor,
    )


def _blocks_of(call: Call, loops: Loops, factor: str, table: BlockTable) -> set[int]:
    """Block counts that a factor may be sharded in, from the places that hold it."""
    found = {1}
    if factor in loops.unblocked:
        return found
    names = [value.name for value in call.operands], call.operator.results
    for value_names, dims_of in zip(names, (loops.operands, loops.results), strict=True):
        for name, dims in zip(value_names, dims_of, strict=False):
            for position, dim in enumerate(dims):
                for held in dim:
                    if held.name == factor and name is not None:
                        known = table.get((name, position), frozenset())
                        found |= {blocks // held.blocks for blocks in known if blocks % held.blocks == 0}
    return found


def axis_choices(call: Call, loops: Loops | None, table: BlockTable) -> tuple[AxisChoice, ...]:
    """Everything one axis may do to one operator, whatever its size."""
    reads, makes = len(call.operands), len(call.results)
    unsharded = AxisChoice(NONE, (REPLICATE,) * reads, (REPLICATE,) * makes)
    choices = [unsharded]
    if any(value is not None and value.requires_grad for value in call.results):
        choices.append(AxisChoice(GRADIENT, (REPLICATE_PARTIAL,) * reads, (REPLICATE_PARTIAL,) * makes))
    if loops is None:
        return tuple(choices)
    for factor in loops.shardable():
        for blocks in sorted(_blocks_of(call, loops, factor, table)):
            choices.append(_factor_choice(loops, factor, blocks))
    for linear in loops.linear:
        operands = tuple(PARTIAL if position in linear else REPLICATE_PARTIAL for position in range(reads))
        which = "".join(map(str, sorted(linear))) if len(loops.linear) > 1 else ""
        choices.append(AxisChoice(SUM + which, operands, (PARTIAL,) * makes))
    return tuple(choices)


def strategies(
    call: Call, choices: tuple[tuple[AxisChoice, ...], ...], sizes: tuple[int, ...]
) -> Iterator[Strategy]:
    """All combinations of per-axis choices that divide every tensor evenly, without repetitions."""
    seen = set()
    for combination in product(*choices):
        strategy = combined(call, combination)
        layouts = (strategy.operands, strategy.results)
        if layouts not in seen and divides(call, strategy, sizes):
            seen.add(layouts)
            yield strategy


def combined(call: Call, combination: tuple[AxisChoice, ...]) -> Strategy:
    """The strategy that makes one choice on each axis."""

    def layouts_of(
        values: tuple[Value | None, ...], placements: Sequence[Sequence[Placement]]
    ) -> tuple[Layout, ...]:
        return tuple(
            layout if value is None or value.requires_grad else without_gradient(layout)
            for value, layout in zip(values, _transposed(placements, len(values)), strict=True)
        )

    return Strategy(
        tuple(choice.name for choice in combination),
        tuple(choice.factor for choice in combination),
        layouts_of(call.operands, [choice.operands for choice in combination]),
        layouts_of(call.results, [choice.results for choice in combination]),
    )


def _transposed(placements: Sequence[Sequence[Placement]], count: int) -> list[Layout]:
    """Placements by axis and tensor, as one layout per tensor."""
    return [tuple(axis[position] for axis in placements) for position in range(count)]


def divides(call: Call, strategy: Strategy, sizes: tuple[int, ...]) -> bool:
    """True when every dim that the strategy shards divides evenly."""
    values = (*call.operands, *call.results)
    layouts = (*strategy.operands, *strategy.results)
    return all(
        value is None or is_legal(value.shape, layout, sizes)
        for value, layout in zip(values, layouts, strict=True)
    )
