"""The operators and collectives of each segment call in the order of the forward, each with its seconds and facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from autopar.capture.graph import Operator, SegmentType, Value
from autopar.plan.text import write_tensor
from autopar.planner.operators import PlannedOperator
from autopar.planner.prices import Prices
from autopar.report.anatomy import Anatomy
from autopar.report.communication import SILENT, Hop, change_of, hops
from autopar.report.step_conversions import PlacedConversion, placed_conversions
from autopar.shardings.placement import Layout, format_layout, local_shape
from cost_models.dtypes import dtype_bytes

__all__ = ["Fact", "Piece", "pieces_of_calls"]

WEIGHTS_SHARE = 0.5
"""Of the backward of an operator with weights: a product takes as long for its weight as for its input."""

Fact = str | int | float | list[str]


@dataclass(frozen=True, slots=True)
class Piece:
    """One operator, or one hop of a conversion, in both passes of one microbatch."""

    name: str
    """Unique within its call."""
    label: str
    """As a trace shows it."""
    forward_s: float
    backward_s: float
    facts: dict[str, Fact]
    is_collective: bool = False
    made_bytes: int = 0
    """Of what an operator writes and a gradient flows through."""
    gradient_bytes: int = 0
    """Of the gradients of all that it reads and makes."""
    weights_share: float = 0.0
    """Of its backward, where gradients of weights are made by themselves."""


def pieces_of_calls(opened: Anatomy) -> tuple[tuple[Piece, ...], ...]:
    """By segment call of the graph, what one microbatch does."""
    placed: dict[tuple[int, int], list[PlacedConversion]] = {}
    for each in placed_conversions(opened.sharded):
        placed.setdefault((each.call, each.operator), []).append(each)
    types = {segment.name: segment for segment in opened.sharded.graph.types}
    operators: dict[tuple[str, str], tuple[Piece, ...]] = {}
    found = []
    for stage in opened.sharded.stages:
        prices = _prices_at(stage.recompute, opened)
        for position in range(stage.calls[0], stage.calls[1] + 1):
            name = opened.sharded.graph.calls[position].type
            key = (name, stage.recompute)
            if key not in operators:
                operators[key] = _operators(types[name], opened, prices)
            found.append(tuple(_pieces(position, operators[key], placed, opened)))
    return tuple(found)


def _prices_at(recompute: str, opened: Anatomy) -> Prices:
    """Prices of a stage that recomputes at this level."""
    prices = opened.prices
    if recompute == prices.execution.recompute:
        return prices
    return Prices(prices.cluster, prices.axes, execution=replace(prices.execution, recompute=recompute))


def _pieces(
    call: int,
    operators: Sequence[Piece],
    placed: dict[tuple[int, int], list[PlacedConversion]],
    opened: Anatomy,
) -> Iterator[Piece]:
    for position in range(len(operators) + 1):
        for number, conversion in enumerate(placed.get((call, position), ())):
            yield from _hops(f"{position}.{number}", conversion, opened)
        if position < len(operators):
            yield operators[position]


def _operators(segment: SegmentType, opened: Anatomy, prices: Prices) -> tuple[Piece, ...]:
    return tuple(
        _operator(segment, planned, operator, opened, prices)
        for planned, operator in zip(opened.types[segment.name].operators, segment.operators, strict=True)
    )


def _operator(
    segment: SegmentType, planned: PlannedOperator, operator: Operator, opened: Anatomy, prices: Prices
) -> Piece:
    strategy = opened.sharded.strategies[segment.name, operator.name]
    price = prices.operator(planned.call, strategy.operands, strategy.results, opened.types[segment.name])
    axes = opened.sharded.axis_names
    reads = list(zip(planned.call.operands, strategy.operands, strict=True))
    makes = [(v, layout) for v, layout in zip(planned.call.results, strategy.results, strict=True) if v]
    factors = [f"{axis}:{name}" for axis, name in zip(axes, strategy.names, strict=True) if name != "-"]
    facts: dict[str, Fact] = {
        "operator": operator.target,
        "strategy": " ".join(factors),
        "reads": [_local_text(value, layout, opened) for value, layout in reads],
        "makes": [_local_text(value, layout, opened) for value, layout in makes],
        "provenance": price.provenance,
        "module": operator.module,
        "source": operator.source,
    }
    gradients = [(v, layout) for v, layout in (*reads, *makes) if v.requires_grad]
    return Piece(
        operator.name,
        operator.name,
        price.forward_s,
        price.backward_s,
        facts,
        made_bytes=_bytes(makes, opened) if price.forward_s and gradients else 0,
        gradient_bytes=_bytes(gradients, opened),
        weights_share=WEIGHTS_SHARE if _has_weights(planned) else 0.0,
    )


def _has_weights(planned: PlannedOperator) -> bool:
    return any(planned.call.operands[place].requires_grad for place in planned.parameters)


def _hops(name: str, placed: PlacedConversion, opened: Anatomy) -> Iterator[Piece]:
    """A conversion's collectives; what the plan prices is shared out among them."""
    conversion = placed.conversion
    found = list(hops(conversion, opened))
    priced_s = sum(hop.forward_s + hop.again_s + hop.backward_s for hop in found)
    scale = placed.seconds / priced_s if priced_s else 0.0
    for number, hop in enumerate(found):
        facts: dict[str, Fact] = {
            "tensor": conversion.value.name,
            "conversion": change_of(conversion, opened),
            "axis": hop.axis,
            "forward": hop.forward,
            "backward": hop.backward,
            "bytes": max(hop.forward_bytes, hop.backward_bytes),
            "global": write_tensor(conversion.value),
        }
        forward_s, backward_s = (
            scale * seconds if way != "nothing" else 0.0
            for seconds, way in ((hop.forward_s, hop.forward), (hop.backward_s, hop.backward))
        )
        backward_s += scale * hop.again_s
        yield Piece(
            f"{name}.{number} {conversion.value.name}", _label(hop), forward_s, backward_s, facts, _sends(hop)
        )


def _sends(hop: Hop) -> bool:
    return not {hop.forward, hop.backward} <= set(SILENT)


def _label(hop: Hop) -> str:
    return f"{hop.forward} / {hop.backward} {hop.axis}"


def _local_text(value: Value, layout: Layout, opened: Anatomy) -> str:
    """``x bfloat16[4, 128, 512] dp_shard:S(0) tp:R``: one rank's piece."""
    shape = list(local_shape(value.shape, layout, opened.prices.sizes))
    placements = format_layout(layout, opened.sharded.axis_names)
    return f"{value.name} {value.dtype}{shape} {placements}".rstrip()


def _bytes(values: Sequence[tuple[Value, Layout]], opened: Anatomy) -> int:
    return sum(
        prod(local_shape(value.shape, layout, opened.prices.sizes)) * dtype_bytes(value.dtype)
        for value, layout in values
    )
