"""How a cut through the batch spreads through a graph: what one slice of the batch makes of every value.

A slice in time is like a mesh axis whose ranks work one after the other: the same rules apply, but nothing can
be exchanged. So every operator must read its operands as they come: cut (``S``), the same for every slice
(``R``: parameters and what is made of them alone), or a sum over slices (``P``: a loss's share).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.capture.graph import Graph, SegmentCall
from autopar.planner.operators import PlannedOperator, PlannedType
from autopar.shardings.placement import REPLICATE, Placement, is_legal, shard
from autopar.shardings.strategy import AxisChoice

__all__ = ["Cut", "Spread", "spread_cut"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Why a batch cannot be cut."""

    reason: str


@dataclass(frozen=True, slots=True)
class Spread:
    """What each slice sees of every value."""

    outer: dict[str, Placement]
    """Values between segments, inputs among them."""
    inner: dict[tuple[str, str], Placement]
    """By (segment type, value)."""
    choices: dict[tuple[str, str], AxisChoice]
    """What the cut does to each operator, by (segment type, operator)."""


@dataclass
class _State:
    """What is known so far; ``forced`` are values that some reader needs cut although they need not be."""

    outer: dict[str, Placement] = field(default_factory=dict)
    inner: dict[tuple[str, str], Placement] = field(default_factory=dict)
    choices: dict[tuple[str, str], AxisChoice] = field(default_factory=dict)
    made_by: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(segment type, value) of every value between segments."""


Forced = dict[tuple[str, str], Placement]


def spread_cut(
    graph: Graph, types: Mapping[str, PlannedType], inputs: Mapping[str, int], ways: int
) -> Spread | Cut:
    """Cut ``inputs`` (dim by name) into ``ways`` slices and follow the cut through the graph."""
    forced: Forced = {}
    while True:
        state = _State({i.value.name: REPLICATE for i in graph.inputs})
        state.outer.update({name: shard(dim) for name, dim in inputs.items()})
        found = _follow(graph, types, state, forced, ways)
        if found is None:
            return Spread(state.outer, state.inner, state.choices)
        if isinstance(found, Cut):
            return found
        forced.update(found)


def _follow(
    graph: Graph, types: Mapping[str, PlannedType], state: _State, forced: Forced, ways: int
) -> Forced | Cut | None:
    """Carry the cut through all calls; values that must be cut too, or why that is impossible."""
    for call in graph.calls:
        planned = types[call.type]
        given = [state.outer[name] for name in call.arguments]
        known = [state.inner.get((call.type, name)) for name in planned.segment.inputs]
        if any(placement is not None for placement in known):
            if given != known:
                return Cut(f"{call.type} at '{call.module}' reads other slices than its twins")
        else:
            found = _follow_segment(planned, call, given, state, forced, ways)
            if found is not None:
                return found
        for outside, inside in zip(call.results, planned.segment.outputs, strict=True):
            state.outer[outside] = state.inner[call.type, inside]
            state.made_by[outside] = (call.type, inside)
    return None


def _follow_segment(
    planned: PlannedType,
    call: SegmentCall,
    given: list[Placement],
    state: _State,
    forced: Forced,
    ways: int,
) -> Forced | Cut | None:
    segment = planned.segment
    here = dict.fromkeys((p.value for p in segment.parameters), REPLICATE)
    here |= {constant.value: REPLICATE for constant in segment.constants}
    here |= dict(zip(segment.inputs, given, strict=True))
    producers = {name: (segment.name, name) for op in segment.operators for name in op.results if name}
    producers |= {
        inside: state.made_by[outside]
        for outside, inside in zip(call.arguments, segment.inputs, strict=True)
        if outside in state.made_by
    }
    for operator in planned.operators:
        wanted = [
            forced.get((segment.name, name)) if name else None for name in operator.call.operator.results
        ]
        choice = _matching(operator, here, wanted, ways)
        if choice is None:
            return _demands(operator, here, wanted, ways, producers, forced)
        state.choices[segment.name, operator.name] = choice
        for name, placement in zip(operator.call.operator.results, choice.results, strict=True):
            if name is not None:
                here[name] = _without_gradient(placement)
    state.inner.update({(segment.name, name): placement for name, placement in here.items()})
    return None


def _without_gradient(placement: Placement) -> Placement:
    return REPLICATE if placement.kind == "R|P" else placement


def _fits(operator: PlannedOperator, choice: AxisChoice, wanted: list[Placement | None], ways: int) -> bool:
    """True for a choice without communication that divides evenly and makes what is wanted."""
    if operator.loops is not None and choice.factor in operator.loops.internal:
        return False
    values = (*operator.call.operands, *operator.call.results)
    placements = (*choice.operands, *choice.results)
    return all(
        value is None or not placement.is_shard or is_legal(value.shape, (placement,), (ways,))
        for value, placement in zip(values, placements, strict=True)
    ) and all(
        want is None or _without_gradient(made) == want
        for want, made in zip(wanted, choice.results, strict=True)
    )


def _mismatches(
    operator: PlannedOperator, choice: AxisChoice, here: Mapping[str, Placement]
) -> list[tuple[str, Placement]]:
    """Operands that come otherwise than the choice reads them, with what it wants."""
    return [
        (value.name, _without_gradient(placement))
        for value, placement in zip(operator.call.operands, choice.operands, strict=True)
        if here[value.name] != _without_gradient(placement)
    ]


def _matching(
    operator: PlannedOperator, here: Mapping[str, Placement], wanted: list[Placement | None], ways: int
) -> AxisChoice | None:
    for choice in operator.choices:
        if _fits(operator, choice, wanted, ways) and not _mismatches(operator, choice, here):
            return choice
    return None


def _demands(
    operator: PlannedOperator,
    here: Mapping[str, Placement],
    wanted: list[Placement | None],
    ways: int,
    producers: Mapping[str, tuple[str, str]],
    forced: Forced,
) -> Forced | Cut:
    """What must be cut at its origin for the operator to go on: values that are the same for all slices."""
    for choice in operator.choices:
        if not _fits(operator, choice, wanted, ways):
            continue
        missing = _mismatches(operator, choice, here)
        can_be_cut = all(
            here[name] == REPLICATE and want.is_shard and name in producers and producers[name] not in forced
            for name, want in missing
        )
        if can_be_cut:
            return {producers[name]: want for name, want in missing}
    op = operator.call.operator
    where = f" ({op.source.strip()})" if op.source else ""
    return Cut(f"{op.target} mixes the sequences of a batch{where}")
