"""Every tensor of a folded model, its one producer and all its consumers.

The model is folded: a block that occurs 32 times is one segment type with a count. What is decided are
*items*: operators, the layouts in which a type takes its inputs, the layouts in which parameters rest, and
the layouts in which the caller hands in the batch. *Tensors* join items; each is converted at most once per
layout wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autopar.capture.graph import Graph, SegmentType, Value, full_name
from autopar.planner.kept import Kept
from autopar.shardings.calls import references
from autopar.shardings.placement import REPLICATE, REPLICATE_PARTIAL, Placement

__all__ = [
    "Item",
    "ParameterGroup",
    "Tensor",
    "Use",
    "parameter_groups",
    "resting_placement",
    "tensors_of",
]


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """Something that is decided."""

    kind: str
    """``operator``, ``boundary`` (an input of a segment type), ``parameter``, ``input`` or ``output``."""
    type: str
    """Segment type; empty at graph level."""
    name: str
    """Operator name, value name, or the parameter's first full name."""

    def __str__(self) -> str:
        return f"{self.kind} {self.type + '.' if self.type else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Use:
    """One mention of a tensor by a consumer."""

    item: Item
    position: int = 0
    """Which operand it is."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, or all tensors that are made and used alike."""

    value: Value
    producer: Item
    result: int
    """Which result of the producer it is."""
    uses: tuple[Use, ...]
    count: int
    """How many times a step it exists: the number of calls of its type."""
    members: tuple[tuple[str, str], ...]
    """(segment type, value name) of every tensor this stands for; no type for values between segments."""
    kept_count: int = 0
    """How many of them live from forward to backward, in the versions that consumers read."""
    runs_again: bool = False
    """Recomputation repeats what conversions of it do in the forward."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that are decided as one: the same weight of all blocks of a type, or tied weights."""

    item: Item
    value: Value
    names: tuple[str, ...]
    """Full names, each tensor once."""
    places: tuple[tuple[str, str], ...]
    """(segment type, value name) where it is used."""
    uses_per_step: int
    """How often a step uses each place, at most."""


def resting_placement(value: Value) -> Placement:
    """What a data axis does to a parameter at rest: the engine sums its gradient, except for scalars.

    FSDP2 takes no scalars, so the program sums their gradients itself.
    """
    return REPLICATE_PARTIAL if value.requires_grad and value.shape else REPLICATE


def parameter_groups(graph: Graph) -> tuple[ParameterGroup, ...]:
    """Parameters and buffers, grouped by the segment values that stand for them."""
    types = {segment.name: segment for segment in graph.types}
    canonical = {p.name: p.alias_of or p.name for p in graph.parameters}
    names_of: dict[tuple[str, str], dict[str, None]] = {}
    for call in graph.calls:
        for parameter in types[call.type].parameters:
            name = full_name(call.module, parameter.path)
            names_of.setdefault((call.type, parameter.value), {})[canonical.get(name, name)] = None
    calls = Counter(call.type for call in graph.calls)
    groups = []
    for places in _joined(names_of):
        names = tuple(dict.fromkeys(name for place in places for name in names_of[place]))
        value = types[places[0][0]].values[places[0][1]]
        uses = max(calls[type_name] for type_name, _ in places)
        groups.append(ParameterGroup(Item("parameter", "", names[0]), value, names, tuple(places), uses))
    return tuple(groups)


def _joined(names_of: dict[tuple[str, str], dict[str, None]]) -> list[list[tuple[str, str]]]:
    """Places that share a name belong together."""
    groups: list[tuple[set[str], list[tuple[str, str]]]] = []
    for place, names in names_of.items():
        mine = [group for group in groups if group[0] & names.keys()]
        merged = (set(names).union(*(g[0] for g in mine)), [p for g in mine for p in g[1]] + [place])
        groups = [group for group in groups if group not in mine] + [merged]
    return [places for _, places in groups]


def _uses_within(segment: SegmentType) -> dict[str, list[Use]]:
    uses: dict[str, list[Use]] = {}
    for operator in segment.operators:
        for position, name in enumerate(references(operator)):
            uses.setdefault(name, []).append(Use(Item("operator", segment.name, operator.name), position))
    return uses


def _distinct_arguments(graph: Graph, segment: SegmentType, name: str) -> int:
    """How many tensors the calls of a segment are given for one input: one, where all get the same."""
    position = segment.inputs.index(name)
    return len({call.arguments[position] for call in graph.calls if call.type == segment.name})


def _producers_within(segment: SegmentType) -> dict[str, tuple[Item, int]]:
    """Producer and result position of every value that a segment makes or is given."""
    made = {name: (Item("boundary", segment.name, name), 0) for name in segment.inputs}
    for operator in segment.operators:
        item = Item("operator", segment.name, operator.name)
        made.update(
            {name: (item, position) for position, name in enumerate(operator.results) if name is not None}
        )
    return made


def tensors_of(graph: Graph, kept: Mapping[str, Kept]) -> tuple[Tensor, ...]:
    """Every tensor with a use, in execution order of the folded model; ``kept`` by segment type."""
    types = {segment.name: segment for segment in graph.types}
    calls = Counter(call.type for call in graph.calls)
    readers = {name: _uses_within(segment) for name, segment in types.items()}
    tensors: list[Tensor] = []
    for segment in graph.types:
        for name, (item, result) in _producers_within(segment).items():
            if name in readers[segment.name]:
                value, count = segment.values[name], calls[segment.name]
                distinct = _distinct_arguments(graph, segment, name) if item.kind == "boundary" else count
                tensors.append(
                    Tensor(
                        value,
                        item,
                        result,
                        tuple(readers[segment.name][name]),
                        count,
                        ((segment.name, name),),
                        distinct if name in kept[segment.name].across else 0,
                        name in kept[segment.name].converted_again,
                    )
                )
    for group in parameter_groups(graph):
        uses = tuple(use for type_name, name in group.places for use in readers[type_name].get(name, ()))
        repeats = any(name in kept[type_name].converted_again for type_name, name in group.places)
        tensors.append(
            Tensor(group.value, group.item, 0, uses, group.uses_per_step, group.places, 0, repeats)
        )
    return (*tensors, *_outer_tensors(graph, types))


def _outer_tensors(graph: Graph, types: dict[str, SegmentType]) -> list[Tensor]:
    """Values between segments; those made and used by the same items are one tensor with a count."""
    made: dict[str, tuple[Item, int]] = {
        graph_input.value.name: (Item("input", "", graph_input.value.name), 0) for graph_input in graph.inputs
    }
    used: dict[str, dict[Use, None]] = {}
    producers_by_type = {name: _producers_within(segment) for name, segment in types.items()}
    for call in graph.calls:
        segment, producers = types[call.type], producers_by_type[call.type]
        for outside, inside in zip(call.results, segment.outputs, strict=True):
            made[outside] = producers[inside]
        for outside, inside in zip(call.arguments, segment.inputs, strict=True):
            used.setdefault(outside, {})[Use(Item("boundary", call.type, inside))] = None
    for name in graph.outputs:
        used.setdefault(name, {})[Use(Item("output", "", name))] = None
    alike: dict[tuple[Item, int, tuple[Use, ...]], list[str]] = {}
    for name, uses in used.items():
        alike.setdefault((*made[name], tuple(uses)), []).append(name)
    return [
        Tensor(
            graph.values[names[0]], producer, result, uses, len(names), tuple(("", name) for name in names)
        )
        for (producer, result, uses), names in alike.items()
    ]
