"""Operators placed on stages: which segment calls each pipeline rank runs, and what the step takes then.

Strategies are the same on every stage; what differs by stage is which calls it runs and how much it recomputes,
since the first stage holds the most microbatches in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autopar.capture.graph import Graph, GraphInput, SegmentCall
from autopar.planner.decisions import Decisions
from autopar.planner.memory import Memory
from autopar.planner.operators import PlannedType
from autopar.planner.partition import CallCost, partition
from autopar.planner.pins import Pins
from autopar.planner.prices import Known, Prices
from autopar.planner.realize import Realized, memory_of, realize
from autopar.planner.schedules import in_flight_by_rank, schedules
from autopar.planner.tensors import parameter_groups
from autopar.shardings.placement import local_shape
from autopar.shardings.sharded import Stage
from cost_models.collectives import send_s
from cost_models.dtypes import dtype_bytes
from cost_models.schedules import pipeline_s

__all__ = ["Staged", "Staging"]


@dataclass(frozen=True, slots=True)
class Staged:
    """Stages, their order, and what the step takes."""

    stages: tuple[Stage, ...]
    schedule: str
    chunks: int
    step_s: float
    bubble_fraction: float
    memory: tuple[Memory, ...]
    """By pipeline rank."""

    @property
    def peak(self) -> int:
        """Bytes of the fullest device."""
        return max(memory.peak for memory in self.memory)


@dataclass(frozen=True)
class Staging:
    """One choice of strategies, to be put on stages in several ways."""

    graph: Graph
    types: Mapping[str, PlannedType]
    names: tuple[str, ...]
    decisions: Decisions
    prices: Prices
    levels: tuple[str, ...]
    """Recompute levels that stages may have, from the fastest to the leanest."""

    @cached_property
    def realized(self) -> dict[str, Realized]:
        """The whole model, recomputed at each level."""
        return {
            level: realize(self.graph, self.types, self.names, self.decisions, self._prices_at(level))
            for level in self.levels
        }

    def _prices_at(self, level: str) -> Prices:
        if level == self.prices.execution.recompute:
            return self.prices
        known = Known(tables=self.prices.known.tables, steps=self.prices.known.steps)
        execution = replace(self.prices.execution, recompute=level)
        return Prices(self.prices.cluster, self.prices.axes, known, execution)

    def best(self, pins: Pins, limit_bytes: int) -> Staged | None:
        """The fastest stages and schedule that fit; None where none do."""
        found = [
            staged
            for schedule, chunks in schedules(pins, self.ranks, self.microbatches, len(self.graph.calls))
            if (staged := self.on(schedule, chunks, limit_bytes)) is not None
        ]
        return min(found, key=lambda staged: staged.step_s, default=None)

    def on(self, schedule: str, chunks: int, limit_bytes: int) -> Staged | None:
        """The best cut for one schedule; None where nothing fits or there are fewer calls than stages."""
        allowance = float(limit_bytes)
        for _ in range(3):
            flights = self._in_flight(schedule, chunks)
            parts = partition(self.costs, flights, allowance / chunks, self.microbatches)
            if parts is None:
                return None
            stages = tuple(
                Stage((part.first, part.last), self.levels[part.level], self.prices.execution.zero)
                for part in parts
            )
            staged = self.staged(stages, schedule)
            if staged.peak <= limit_bytes:
                return staged
            allowance -= staged.peak - limit_bytes
        return None

    @property
    def microbatches(self) -> int:
        return self.prices.execution.microbatches

    @property
    def ranks(self) -> int:
        return self.prices.execution.stage_ranks

    def _in_flight(self, schedule: str, chunks: int) -> list[float]:
        """Microbatches in flight on each stage, in order; a rank's stages hold its share alike."""
        return list(in_flight_by_rank(schedule, self.ranks, self.microbatches, chunks)) * chunks

    def staged(self, stages: tuple[Stage, ...], schedule: str) -> Staged:
        """What given stages take."""
        chunks = max(len(stages) // self.ranks, 1)
        flights = self._in_flight(schedule, chunks)
        seconds, upkeep, memories = [], [], []
        for rank in range(self.ranks):
            mine = [stages[place] for place in range(rank, len(stages), self.ranks)]
            calls = [call for stage in mine for call in self._calls(stage)]
            seconds.append(sum(self._stage_s(stage) for stage in mine) + self._sends_s(rank, stages))
            upkeep.append(self._upkeep(calls, self.microbatches * seconds[-1]))
            memories.append(
                _joined([self._memory(stage, flights[rank]) for stage in mine], self.prices.execution.zero)
            )
        pipeline = pipeline_s(
            schedule,
            seconds,
            microbatches=self.microbatches,
            chunks=chunks,
            transfer_s=self._transfers_s(stages) if self._is_cuda else 0.0,
        )
        busy = sum(seconds) / self.ranks * self.microbatches
        step = pipeline + max(upkeep)
        return Staged(stages, schedule, chunks, step, max(0.0, 1.0 - busy / pipeline), tuple(memories))

    @cached_property
    def _is_cuda(self) -> bool:
        return self.prices.cluster.device.kind == "cuda"

    def _calls(self, stage: Stage) -> Sequence[SegmentCall]:
        return self.graph.calls[stage.calls[0] : stage.calls[1] + 1]

    def _stage_s(self, stage: Stage) -> float:
        """Forward and backward of one microbatch."""
        level = self.levels.index(stage.recompute)
        return sum(self.costs[place].seconds[level] for place in range(stage.calls[0], stage.calls[1] + 1))

    def _transfers_s(self, stages: tuple[Stage, ...]) -> list[float]:
        """By pipeline rank, one way from the widest of its stages to the next one, for one microbatch."""
        found = [0.0] * self.ranks
        for place in range(len(stages) - 1):
            rank = place % self.ranks
            found[rank] = max(found[rank], self._wire_s(place, stages))
        return found

    def _sends_s(self, rank: int, stages: tuple[Stage, ...]) -> float:
        """What a CPU spends on a microbatch's activations and gradients: nothing hides it there."""
        if self._is_cuda:
            return 0.0
        ends = [
            place
            for place in range(len(stages) - 1)
            if rank in (place % self.ranks, (place + 1) % self.ranks)
        ]
        return 2.0 * sum(self._wire_s(place, stages) for place in ends)

    def _wire_s(self, place: int, stages: tuple[Stage, ...]) -> float:
        """One way from a stage to the next."""
        return send_s(self.wire_bytes(stages[place].calls[1]), self.prices.stage_links[place % self.ranks])

    def wire_bytes(self, last: int) -> int:
        """Bytes of what later calls read, as one rank holds it."""
        later = {name for call in self.graph.calls[last + 1 :] for name in call.arguments} | set(
            self.graph.outputs
        )
        made = {name for call in self.graph.calls[: last + 1] for name in call.results}
        sharded = self.realized[self.levels[0]].sharded
        return sum(
            _bytes(self.graph, name, sharded.made_layout(name), sharded.sizes)
            for name in sorted(made & later)
        )

    def _upkeep(self, calls: Sequence[SegmentCall], compute_s: float) -> float:
        """Optimizer and what sticks out of gathers and gradient sums beside the compute of a rank."""
        groups = parameter_groups(_part(self.graph, calls))
        resting = self.realized[self.levels[0]].sharded.parameters
        traffic = optimizer = 0.0
        for group in groups:
            layout = resting[group.names[0]]
            traffic += len(group.names) * self.prices.traffic_s(group.value, layout)
            optimizer += len(group.names) * self.prices.upkeep_s(group.value, layout)
        optimizer -= traffic
        return optimizer + (max(0.0, traffic - compute_s) if self._is_cuda else traffic)

    def _memory(self, stage: Stage, in_flight: float) -> Memory:
        calls = self._calls(stage)
        key = (stage.recompute, tuple(call.type for call in calls))
        if key not in self._memories:
            self._memories[key] = self._memory_of(calls, stage.recompute, 1.0)
        memory = self._memories[key]
        return replace(memory, activations=round(memory.activations * in_flight))

    @cached_property
    def _memories(self) -> dict[tuple[str, tuple[str, ...]], Memory]:
        """Memory of stages by level and the types of their calls, one microbatch in flight."""
        return {}

    def _memory_of(self, calls: Sequence[SegmentCall], level: str, in_flight: float) -> Memory:
        part = _part(self.graph, calls)
        resting = self.realized[level].sharded.parameters
        decisions = replace(
            self.decisions,
            parameters={group.item.name: resting[group.names[0]] for group in parameter_groups(part)},
            inputs={i.value.name: () for i in part.inputs},
        )
        used = {call.type for call in calls}
        types = {name: planned for name, planned in self.types.items() if name in used}
        sharded = self.realized[level].sharded
        memory = memory_of(part, types, sharded.strategies, decisions, self._prices_at(level))
        return replace(memory, activations=round(memory.activations * in_flight))

    @cached_property
    def costs(self) -> tuple[CallCost, ...]:
        """What each call takes, by level."""
        by_type = {name: self._type_cost(name) for name in self.types}
        outside = self._conversions_between()
        return tuple(
            replace(
                by_type[call.type],
                seconds=tuple(s + outside.get(place, 0.0) for s in by_type[call.type].seconds),
            )
            for place, call in enumerate(self.graph.calls)
        )

    def _type_cost(self, name: str) -> CallCost:
        call = next(call for call in self.graph.calls if call.type == name)
        seconds, kept = [], []
        for level in self.levels:
            realized = self.realized[level]
            operators = sum(
                price.seconds for (owner, _), price in realized.operators.items() if owner == name
            )
            conversions = sum(
                each.seconds / each.count
                for each in realized.sharded.conversions
                if each.members[0][0] == name
            )
            memory = self._memory_of([call], level, 1.0)
            seconds.append(operators + conversions)
            kept.append(float(memory.activations))
        held = memory.parameters + memory.gradients + memory.optimizer
        working = memory.gathered + memory.temporaries + memory.overhead
        return CallCost(tuple(seconds), tuple(kept), float(held), float(working))

    def _conversions_between(self) -> dict[int, float]:
        """Seconds of one microbatch's conversions of values between segments, by the call that reads them first."""
        found: dict[int, float] = {}
        calls = self.graph.calls
        for conversion in self.realized[self.levels[0]].sharded.conversions:
            for owner, value in conversion.members:
                if not owner:
                    readers = [place for place, call in enumerate(calls) if value in call.arguments]
                    place = readers[0] if readers else len(calls) - 1
                    found[place] = found.get(place, 0.0) + conversion.seconds / conversion.count
        return found


def _part(graph: Graph, calls: Sequence[SegmentCall]) -> Graph:
    """The graph of some calls, what they read from elsewhere being inputs."""
    made = {name for call in calls for name in call.results}
    needed = dict.fromkeys(name for call in calls for name in call.arguments if name not in made)
    used = {call.type for call in calls}
    return replace(
        graph,
        types=tuple(segment for segment in graph.types if segment.name in used),
        calls=tuple(calls),
        inputs=tuple(GraphInput(graph.values[name], "") for name in needed),
        outputs=tuple(name for name in graph.outputs if name in made),
    )


def _joined(memories: Sequence[Memory], zero: int) -> Memory:
    """A rank's stages: they share what one operator needs at a time, and parameters gathered for each use."""
    first = memories[0]
    gathered = [memory.gathered for memory in memories]
    return Memory(
        parameters=sum(memory.parameters for memory in memories),
        gradients=sum(memory.gradients for memory in memories),
        optimizer=sum(memory.optimizer for memory in memories),
        gathered=sum(gathered) if 0 < zero < 3 else max(gathered),
        activations=sum(memory.activations for memory in memories),
        temporaries=max(memory.temporaries for memory in memories),
        overhead=first.overhead,
    )


def _bytes(graph: Graph, name: str, layout: tuple, sizes: tuple[int, ...]) -> int:  # type: ignore[type-arg]
    value = graph.values[name]
    total = 1
    for size in local_shape(value.shape, layout, sizes):
        total *= size
    return total * dtype_bytes(value.dtype)
