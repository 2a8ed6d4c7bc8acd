"""The part of a graph that some values need, where the batch alone determines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.capture.graph import Argument, Graph, Operator, Ref, SegmentCall, SegmentType

__all__ = ["Place", "counted_targets", "upstream"]


@dataclass(frozen=True, slots=True)
class Place:
    """A value inside a segment type."""

    type: str
    value: str


def upstream(graph: Graph, wanted: Sequence[Place]) -> Graph | None:
    """A graph whose outputs are the ``wanted`` values, with nothing in it that they do not need.

    Segments keep their names, operators theirs. None where a parameter or a repeated block has a part in it.
    """
    types = {segment.name: segment for segment in graph.types}
    needed: dict[str, set[str]] = {}
    for place in wanted:
        needed.setdefault(place.type, set()).add(place.value)
    outer: set[str] = set()
    calls: list[SegmentCall] = []
    for call in reversed(graph.calls):
        segment = types[call.type]
        inside = needed.setdefault(call.type, set())
        inside |= {name for out, name in zip(call.results, segment.outputs, strict=True) if out in outer}
        if not inside:
            continue
        _close(segment, inside)
        if call.module or inside & {parameter.value for parameter in segment.parameters}:
            return None
        outer |= {given for given, name in zip(call.arguments, segment.inputs, strict=True) if name in inside}
        calls.append(call)
    handed = {
        call.type: tuple(
            name
            for name in sorted(needed[call.type])
            if name in types[call.type].outputs or Place(call.type, name) in wanted
        )
        for call in calls
    }
    pruned = {call.type: _pruned(types[call.type], needed[call.type], handed[call.type]) for call in calls}
    names = {place: f"{place.type}_{place.value}" for place in wanted}
    values = {name: graph.values[name] for name in graph.values if name in outer}
    values |= {
        name: replace(types[place.type].values[place.value], name=name) for place, name in names.items()
    }
    return replace(
        graph,
        inputs=tuple(i for i in graph.inputs if i.value.name in outer),
        types=tuple(pruned.values()),
        calls=tuple(_call(call, types[call.type], pruned[call.type], names) for call in reversed(calls)),
        outputs=tuple(names[place] for place in wanted),
        values=values,
    )


def _close(segment: SegmentType, needed: set[str]) -> None:
    """Add everything that the needed values are made of."""
    for operator in reversed(segment.operators):
        if any(name in needed for name in operator.results):
            needed.update(_read(operator))


def _read(operator: Operator) -> set[str]:
    def names(argument: Argument) -> set[str]:
        if isinstance(argument, Ref):
            return {argument.value}
        return set().union(*map(names, argument)) if isinstance(argument, tuple) else set()

    return names(operator.arguments) | names(tuple(value for _, value in operator.keywords))


def _pruned(segment: SegmentType, needed: set[str], outputs: tuple[str, ...]) -> SegmentType:
    """The segment with what is needed alone."""
    operators = tuple(op for op in segment.operators if any(name in needed for name in op.results))
    return replace(
        segment,
        inputs=tuple(name for name in segment.inputs if name in needed),
        parameters=(),
        constants=tuple(constant for constant in segment.constants if constant.value in needed),
        operators=operators,
        outputs=outputs,
    )


def _call(call: SegmentCall, whole: SegmentType, pruned: SegmentType, names: dict[Place, str]) -> SegmentCall:
    outside = dict(zip(whole.outputs, call.results, strict=True))
    given = dict(zip(whole.inputs, call.arguments, strict=True))
    return replace(
        call,
        arguments=tuple(given[name] for name in pruned.inputs),
        results=tuple(names.get(Place(call.type, name), outside.get(name, name)) for name in pruned.outputs),
    )


def counted_targets(graph: Graph) -> tuple[Place, ...]:
    """The targets that must be counted before the first microbatch."""
    found = []
    for where in graph.microbatches.counted.values():
        name, _, operator = where.partition(".")
        segment = next(segment for segment in graph.types if segment.name == name)
        entropy = next(op for op in segment.operators if op.name == operator)
        found.append(Place(name, _target(entropy)))
    return tuple(found)


def _target(entropy: Operator) -> str:
    target = entropy.arguments[1]
    assert isinstance(target, Ref)
    return target.value
