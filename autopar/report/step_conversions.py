"""Where in a step each conversion between layouts happens: before the first operator that wants it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autopar.capture.graph import Graph, SegmentType
from autopar.shardings.calls import references
from autopar.shardings.placement import Layout
from autopar.shardings.sharded import Conversion, ShardedGraph

__all__ = ["PlacedConversion", "placed_conversions"]


@dataclass(frozen=True, slots=True)
class PlacedConversion:
    """One time that a microbatch makes a conversion."""

    conversion: Conversion
    call: int
    """Position of the segment call among the graph's."""
    operator: int
    """Position in that call of the operator before which it happens; behind the last one for outputs."""
    seconds: float
    """Forward and backward, this time."""


def placed_conversions(sharded: ShardedGraph) -> tuple[PlacedConversion, ...]:
    """Every conversion of one microbatch, as often as the plan counts it, in the order of the forward."""
    graph = sharded.graph
    placed = []
    for conversion in sharded.conversions:
        times = max(1, conversion.count // graph.microbatches.count)
        places = list(_places(conversion, sharded))[:times] or [(len(graph.calls) - 1, _length(graph, -1))]
        seconds = conversion.seconds / (graph.microbatches.count * len(places))
        placed += [PlacedConversion(conversion, call, operator, seconds) for call, operator in places]
    return tuple(sorted(placed, key=lambda each: (each.call, each.operator)))


def _places(conversion: Conversion, sharded: ShardedGraph) -> Iterator[tuple[int, int]]:
    """(call, operator) before which a member of the conversion is wanted, each time that it is made."""
    graph = sharded.graph
    types = {segment.name: segment for segment in graph.types}
    outer = {name for type_name, name in conversion.members if not type_name}
    for position, call in enumerate(graph.calls):
        segment = types[call.type]
        for name in (name for type_name, name in conversion.members if type_name == call.type):
            reader = _first_reader(segment, name, conversion.target, sharded)
            if reader is not None:
                yield position, reader
        for outside, inside in zip(call.arguments, segment.inputs, strict=True):
            if outside in outer and sharded.boundaries[call.type, inside] == conversion.target:
                outer.discard(outside)
                yield position, 0
    for name in outer & set(graph.outputs):
        maker = next((place for place, call in enumerate(graph.calls) if name in call.results), 0)
        yield maker, _length(graph, maker)


def _first_reader(segment: SegmentType, value: str, target: Layout, sharded: ShardedGraph) -> int | None:
    """Position of the first operator that reads ``value`` in ``target``."""
    for position, operator in enumerate(segment.operators):
        layouts = sharded.strategies[segment.name, operator.name].operands
        if (value, target) in zip(references(operator), layouts, strict=True):
            return position
    return None


def _length(graph: Graph, call: int) -> int:
    """Operators of a call."""
    types = {segment.name: segment for segment in graph.types}
    return len(types[graph.calls[call].type].operators)
