"""The operators of a model as the planner sees them on any mesh: loop nests, block shardings and labels."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.graph import Graph, SegmentType
from autopar.planner.labels import Labels, labels_by_type
from autopar.planner.regions import BLOCK, segment_roles
from autopar.shardings.blocks import spread_blocks, without_idle_factors
from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.rules import loops_of
from autopar.shardings.strategy import AxisChoice, axis_choices

__all__ = ["PlannedOperator", "PlannedType", "planned_types"]


@dataclass(frozen=True, slots=True)
class PlannedOperator:
    """One operator and everything an axis may do to it."""

    call: Call
    loops: Loops | None
    """None for an operator without a rule: it runs replicated."""
    choices: tuple[AxisChoice, ...]
    parameters: frozenset[int]
    """Operands that are parameters or buffers."""

    @property
    def name(self) -> str:
        return self.call.operator.name


@dataclass(frozen=True, slots=True)
class PlannedType:
    """One segment type, ready for any mesh."""

    segment: SegmentType
    operators: tuple[PlannedOperator, ...]
    labels: Labels
    role: str = BLOCK
    """``block``, ``head`` or ``root``."""


def planned_types(graph: Graph) -> dict[str, PlannedType]:
    """Every segment type of a graph with its operators' rules applied."""
    ruled = {segment.name: _ruled(segment) for segment in graph.types}
    labels, roles = labels_by_type(graph, ruled), segment_roles(graph)
    return {
        segment.name: _planned(segment, ruled[segment.name], labels[segment.name], roles[segment.name])
        for segment in graph.types
    }


def _ruled(segment: SegmentType) -> list[tuple[Call, Loops | None]]:
    calls = [Call(operator, segment.values) for operator in segment.operators]
    leaves = {parameter.value for parameter in segment.parameters}
    pairs = [(call, loops_of(call)) for call in calls]
    return without_idle_factors(pairs, sources=leaves | set(segment.inputs), sinks=set(segment.outputs))


def _planned(
    segment: SegmentType, ruled: list[tuple[Call, Loops | None]], labels: Labels, role: str
) -> PlannedType:
    blocks = spread_blocks(ruled)
    parameters = {parameter.value for parameter in segment.parameters}
    operators = tuple(
        PlannedOperator(
            call,
            loops,
            axis_choices(call, loops, blocks),
            frozenset(place for place, value in enumerate(call.operands) if value.name in parameters),
        )
        for call, loops in ruled
    )
    return PlannedType(segment, operators, labels, role)
