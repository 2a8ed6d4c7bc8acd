"""A graph with every layout decided: what codegen turns into a program and the plan stores."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.graph import Graph, SegmentType, Value, full_name
from autopar.shardings.conversion import Step
from autopar.shardings.placement import REPLICATE, Layout
from autopar.shardings.strategy import Strategy

__all__ = ["Conversion", "NamedAxis", "ShardedGraph", "Stage", "stages_of_parameters"]


@dataclass(frozen=True, slots=True)
class NamedAxis:
    """One mesh axis, named after what the strategies do with it."""

    name: str
    size: int
    kind: str
    """``model``, or who the data-parallel engine is to parameters: ``replicate``, ``shard``."""

    @property
    def is_data(self) -> bool:
        return self.kind != "model"


@dataclass(frozen=True, slots=True)
class Conversion:
    """One tensor brought into one layout that some consumer wants."""

    value: Value
    members: tuple[tuple[str, str], ...]
    """(segment type, value name) of every tensor converted so; no type for values between segments."""
    source: Layout
    target: Layout
    steps: tuple[Step, ...]
    count: int
    """How many times a step makes it."""
    seconds: float
    """Forward and backward, all ``count`` times together."""
    runs_again: bool = False
    """Recomputation repeats, before the backward, what it does in the forward."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive segment calls that one submesh runs, and how."""

    calls: tuple[int, int]
    """First and last, among the graph's calls."""
    recompute: str = "none"
    zero: int = 3


@dataclass(frozen=True, slots=True)
class ShardedGraph:
    """Strategies, layouts and conversions of a whole model on one mesh."""

    graph: Graph
    axes: tuple[NamedAxis, ...]
    strategies: dict[tuple[str, str], Strategy]
    """By (segment type, operator)."""
    boundaries: dict[tuple[str, str], Layout]
    """Layout in which a segment takes an input, by (segment type, value)."""
    inputs: dict[str, Layout]
    """Layout of each tensor of the batch, by name."""
    parameters: dict[str, Layout]
    """Layout at rest of every parameter and buffer by full name, data axes left out (``R|P`` or ``R``)."""
    conversions: tuple[Conversion, ...]
    stages: tuple[Stage, ...]
    stage_ranks: int = 1
    """Ranks of the pipeline; stage i runs on rank i modulo this number."""
    schedule: str = "none"
    """Order in which the stages run the microbatches; ``none`` for one stage."""

    def made_layout(self, value: str) -> Layout:
        """The layout in which a value between segments comes to be."""
        types = {segment.name: segment for segment in self.graph.types}
        for call in self.graph.calls:
            if value in call.results:
                return self.result_layout(types[call.type], call.results.index(value))
        return self.inputs[value]

    def result_layout(self, segment: SegmentType, position: int) -> Layout:
        """The layout in which a segment leaves an output."""
        name = segment.outputs[position]
        if name in segment.inputs:
            return self.boundaries[segment.name, name]
        for operator in segment.operators:
            if name in operator.results:
                strategy = self.strategies[segment.name, operator.name]
                return strategy.results[operator.results.index(name)]
        return (REPLICATE,) * len(self.axes)

    def steps(self) -> dict[tuple[str, str, Layout], tuple[Step, ...]]:
        """Steps of every conversion by (segment type, value, wanted layout)."""
        return {
            (*member, conversion.target): conversion.steps
            for conversion in self.conversions
            for member in conversion.members
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)


def stages_of_parameters(sharded: ShardedGraph) -> dict[str, tuple[int, ...]]:
    """The stages that use each parameter or buffer, by its own name; the first one where none does."""
    types = {segment.name: segment for segment in sharded.graph.types}
    canonical = {p.name: p.alias_of or p.name for p in sharded.graph.parameters}
    found: dict[str, set[int]] = {}
    for position, stage in enumerate(sharded.stages):
        for call in sharded.graph.calls[stage.calls[0] : stage.calls[1] + 1]:
            for parameter in types[call.type].parameters:
                name = full_name(call.module, parameter.path)
                found.setdefault(canonical.get(name, name), set()).add(position)
    return {p.name: tuple(sorted(found.get(canonical[p.name], {0}))) for p in sharded.graph.parameters}
