"""A graph written for one microbatch: the batch cut into slices that run one after the other.

Every value takes the shape of one slice. A mean over the batch becomes the slice's share of it (its own mean,
divided by the number of slices), a mean cross-entropy the slice's sum divided by the number of targets of the
whole batch, which the program counts first: so the slices' losses add up to the loss of the whole batch, and
their gradients to its gradients, however unevenly ignored targets are spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autopar.capture.graph import (
    Argument,
    Graph,
    GraphInput,
    Microbatches,
    Operator,
    Ref,
    SegmentCall,
    SegmentType,
    Value,
)
from autopar.capture.upstream import counted_targets, upstream
from autopar.planner.operators import PlannedType
from autopar.planner.spread import Cut, Spread, spread_cut
from autopar.shardings.calls import Call
from autopar.shardings.placement import REPLICATE, Placement, local_shape
from autopar.shardings.rules import loops_of

__all__ = ["Cut", "batch_size", "in_microbatches"]

_SIZED = (
    "view",
    "reshape",
    "_unsafe_view",
    "expand",
    "new_zeros",
    "new_ones",
    "new_full",
)
"""Operators whose second argument is the shape of the result."""
_SIZES = ("size", "shape", "repeats")
_CROSS_ENTROPY = "aten.cross_entropy_loss.default"
_MEAN, _SUM, _IGNORED = 1, 2, -100


def batch_size(graph: Graph) -> int:
    """Rows of the whole batch: dim 0 of the inputs, of whole numbers where there are such; 1 without inputs."""
    values = [i.value for i in graph.inputs if i.value.shape]
    numbers = [value.shape[0] for value in values if value.dtype.startswith("int")]
    return (numbers or [value.shape[0] for value in values] or [1])[0]


def in_microbatches(graph: Graph, types: Mapping[str, PlannedType], count: int) -> Graph | Cut:
    """``graph`` written for one of ``count`` slices of the batch, or why it cannot be cut.

    ``graph`` is as captured, biases apart; ``types`` are its own.
    """
    if count == 1:
        return graph
    rows = batch_size(graph)
    dims = {i.value.name: 0 for i in graph.inputs if i.value.shape and i.value.shape[0] == rows}
    if rows % count or not dims:
        return Cut(f"the batch of {rows} does not divide into {count} microbatches")
    spread = spread_cut(graph, types, dims, count)
    if isinstance(spread, Cut):
        return spread
    joins = tuple(_join(spread.outer[name]) for name in graph.outputs)
    written = _Writer(graph, types, spread, count).write(dims, joins)
    if upstream(written, counted_targets(written)) is None:
        return Cut("the targets of a cross-entropy are made inside a repeated block, or of parameters")
    return written


def _join(placement: Placement) -> str:
    if placement.is_shard:
        return f"cat {placement.dim}"
    return "sum" if placement.kind == "P" else "same"


@dataclass
class _Segment:
    """One segment type being written again."""

    values: dict[str, Value]
    operators: list[Operator] = field(default_factory=list)
    counted: dict[str, str] = field(default_factory=dict)
    """Operator of each count that the segment reads, by value."""
    given: dict[str, str] = field(default_factory=dict)
    """What each of these is called between segments."""


class _Writer:
    def __init__(self, graph: Graph, types: Mapping[str, PlannedType], spread: Spread, count: int) -> None:
        self.graph, self.types, self.spread, self.count = graph, types, spread, count

    def write(self, dims: dict[str, int], joins: tuple[str, ...]) -> Graph:
        written = {segment.name: self._segment(segment) for segment in self.graph.types}
        types = tuple(
            replace(
                segment,
                inputs=(*segment.inputs, *written[segment.name].counted),
                operators=tuple(written[segment.name].operators),
                values=written[segment.name].values,
            )
            for segment in self.graph.types
        )
        values = {
            name: self._slice(value, self.spread.outer[name]) for name, value in self.graph.values.items()
        }
        counted: dict[str, str] = {}
        for name, segment in written.items():
            for inside, operator in segment.counted.items():
                segment.given[inside] = _unused("target_count", {**self.graph.values, **counted})
                counted[segment.given[inside]] = f"{name}.{operator}"
        values |= {name: Value(name, (), "float32", False) for name in counted}
        inputs = [
            replace(i, value=self._slice(i.value, self.spread.outer[i.value.name])) for i in self.graph.inputs
        ]
        inputs += [GraphInput(values[name], f"count:{where}") for name, where in counted.items()]
        return replace(
            self.graph,
            inputs=tuple(inputs),
            types=types,
            calls=tuple(self._call(call, written[call.type]) for call in self.graph.calls),
            values=values,
            microbatches=Microbatches(self.count, dims, joins, counted),
        )

    def _call(self, call: SegmentCall, segment: _Segment) -> SegmentCall:
        return replace(
            call, arguments=(*call.arguments, *(segment.given[inside] for inside in segment.counted))
        )

    def _slice(self, value: Value, placement: Placement) -> Value:
        return replace(value, shape=local_shape(value.shape, (placement,), (self.count,)))

    def _segment(self, segment: SegmentType) -> _Segment:
        placements = {name: self.spread.inner.get((segment.name, name), REPLICATE) for name in segment.values}
        written = _Segment(
            {name: self._slice(value, placements[name]) for name, value in segment.values.items()}
        )
        for operator in segment.operators:
            self._operator(segment, operator, written)
        return written

    def _operator(self, segment: SegmentType, operator: Operator, written: _Segment) -> None:
        """The operator on a slice; a mean over rows of the batch as the slice's share of it."""
        choice = self.spread.choices[segment.name, operator.name]
        operator = _resized(operator, written.values)
        is_sum = bool(choice.factor) and choice.results[0].kind == "P"
        if is_sum and operator.target == _CROSS_ENTROPY and _counts_targets(Call(operator, segment.values)):
            written.operators += _counted(operator, written)
        elif is_sum and _is_mean(Call(operator, segment.values)):
            written.operators += _shared(operator, float(self.count), written)
        else:
            written.operators.append(operator)


def _resized(operator: Operator, values: Mapping[str, Value]) -> Operator:
    """Sizes that the operator names as they are in a slice."""
    name = operator.target.split(".")[1]
    result = operator.results[0] if operator.results else None
    if result is None or name not in (*_SIZED, "repeat"):
        return operator
    first, kept = operator.arguments[0], operator.arguments[2:]
    keywords = tuple((key, value) for key, value in operator.keywords if key not in _SIZES)
    shape = values[result].shape
    if name == "repeat":
        assert isinstance(first, Ref)
        shape = _repeats(values[first.value].shape, shape)
    return replace(operator, arguments=(first, shape, *kept), keywords=keywords)


def _repeats(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """How often each dim of ``target`` repeats that of ``source``, dims matching from the right."""
    whole = (1,) * (len(target) - len(source)) + source
    return tuple(after // max(before, 1) for before, after in zip(whole, target, strict=True))


def _is_mean(call: Call) -> bool:
    loops = loops_of(call)
    is_entropy = call.operator.target == _CROSS_ENTROPY and call.argument(3, "reduction", _MEAN) == _MEAN
    return is_entropy or (loops is not None and loops.is_mean)


def _counts_targets(call: Call) -> bool:
    """True for a mean over the targets that are not ignored, each counting alike."""
    is_mean = call.argument(3, "reduction", _MEAN) == _MEAN
    return is_mean and call.operands[1].dtype == "int64" and call.argument(2, "weight") is None


def _counted(operator: Operator, written: _Segment) -> list[Operator]:
    """The slice's sum, divided by the number of targets of the whole batch."""
    (result,) = operator.results
    assert result is not None
    count = _unused("target_count", written.values)
    written.values[count] = Value(count, (), "float32", False)
    call = Call(operator, written.values)
    ignored, smoothing = call.argument(4, "ignore_index", _IGNORED), call.argument(5, "label_smoothing", 0.0)
    total = replace(
        operator,
        arguments=(operator.arguments[0], operator.arguments[1], None, _SUM, ignored, smoothing),
        keywords=(),
    )
    operators = _then(total, "sum", "aten.div.Tensor", Ref(count), written)
    written.counted[count] = operators[0].name
    return operators


def _shared(operator: Operator, count: float, written: _Segment) -> list[Operator]:
    """The slice's mean, divided by the number of slices."""
    return _then(operator, "mean", "aten.div.Scalar", count, written)


def _then(
    operator: Operator, suffix: str, target: str, argument: Argument, written: _Segment
) -> list[Operator]:
    """``target(operator(…), argument)`` under the operator's own result name."""
    (result,) = operator.results
    assert result is not None
    before = _unused(f"{result}_{suffix}", written.values)
    written.values[before] = replace(written.values[result], name=before)
    return [
        replace(operator, name=before, results=(before,)),
        replace(operator, target=target, arguments=(Ref(before), argument), keywords=()),
    ]


def _unused(wanted: str, values: Mapping[str, object]) -> str:
    name, count = wanted, 1
    while name in values:
        count += 1
        name = f"{wanted}_{count}"
    return name
