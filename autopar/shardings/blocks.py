"""Which blocked shardings are worth having: found where reshapes and slices need them, and spread from there.

A reshape that flattens (batch, sequence) makes "sequence in `batch` blocks" a sharding of the flat dim, and a
fused q, k, v product makes "heads in 3 blocks" one. Such a sharding matters only between two operators that
gain from it, so the factors of views that lead nowhere are dropped before blocks spread over the segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, Loops

__all__ = ["BlockTable", "spread_blocks", "without_idle_factors"]

Place = tuple[str, int]
"""A dim of a value."""

BlockTable = dict[Place, frozenset[int]]
"""Block counts worth considering, beyond 1, by place."""

OneOperator = tuple[Call, Loops | None]


def _holders(
    value_names: Sequence[str | None], dims_of: Sequence[tuple[Dim, ...]], factor: str
) -> list[tuple[Place, int]]:
    """Every place that holds a factor, with the blocks it holds it in."""
    found = []
    for name, dims in zip(value_names, dims_of, strict=False):
        if name is None:
            continue
        for position, dim in enumerate(dims):
            found += [((name, position), held.blocks) for held in dim if held.name == factor]
    return found


def _operand_holders(call: Call, loops: Loops, factor: str) -> list[tuple[Place, int]]:
    return _holders([value.name for value in call.operands], loops.operands, factor)


def _result_holders(call: Call, loops: Loops, factor: str) -> list[tuple[Place, int]]:
    return _holders(call.operator.results, loops.results, factor)


def without_idle_factors(
    operators: Sequence[OneOperator], sources: set[str], sinks: set[str]
) -> list[OneOperator]:
    """The same loops, where views keep a blocked factor only if both ends of it do work.

    ``sources`` (inputs, parameters) may be sharded in any way, ``sinks`` (outputs) are wanted in any way.
    """
    before = _gains(operators, sources, forward=True)
    after = _gains(operators, sinks, forward=False)
    kept: list[OneOperator] = []
    for call, loops in operators:
        if loops is None or loops.is_heavy:
            kept.append((call, loops))
            continue
        idle = set()
        for factor in loops.shardable():
            reads, makes = _operand_holders(call, loops, factor), _result_holders(call, loops, factor)
            is_blocked = any(blocks > 1 for _, blocks in (*reads, *makes))
            has_source = any(place in before or place[0] in sources for place, _ in reads)
            has_sink = any(place in after or place[0] in sinks for place, _ in makes)
            if is_blocked and not (has_source and has_sink):
                idle.add(factor)
        kept.append((call, replace(loops, whole=loops.whole | idle)))
    return kept


def _gains(operators: Sequence[OneOperator], ends: set[str], *, forward: bool) -> set[Place]:
    """Places whose sharding serves an operator that does work, looking up- or downstream."""
    gaining: set[Place] = set()

    def gains(place: Place) -> bool:
        return place in gaining or place[0] in ends

    for call, loops in operators if forward else reversed(operators):
        if loops is None:
            continue
        for factor in loops.shardable():
            near, far = _result_holders(call, loops, factor), _operand_holders(call, loops, factor)
            if not forward:
                near, far = far, near
            if loops.is_heavy or any(gains(place) for place, _ in far):
                gaining.update(place for place, _ in near)
    return gaining


def _sizes(call: Call) -> dict[Place, int]:
    """Length of every dim that a call reads or makes."""
    values = (*call.operands, *(value for value in call.results if value is not None))
    return {(value.name, dim): size for value in values for dim, size in enumerate(value.shape)}


def spread_blocks(operators: Sequence[OneOperator]) -> BlockTable:
    """Block counts of every place, spread along shared factors until nothing changes."""
    table: dict[Place, set[int]] = {}
    changed = True
    while changed:
        changed = False
        for call, loops in operators:
            if loops is None:
                continue
            for factor in loops.shardable():
                holders = _operand_holders(call, loops, factor) + _result_holders(call, loops, factor)
                variants = {
                    blocks // times
                    for place, times in holders
                    for blocks in {1, *table.get(place, ())}
                    if blocks % times == 0 and (blocks == times or factor not in loops.unblocked)
                }
                sizes = _sizes(call)
                for place, times in holders:
                    wanted = {times * v for v in variants if sizes[place] > times * v} - {1}
                    known = table.setdefault(place, set())
                    if not wanted <= known:
                        known |= wanted
                        changed = True
    return {place: frozenset(blocks) for place, blocks in table.items() if blocks}
