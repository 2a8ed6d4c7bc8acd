"""What a shape would take: its kernels' exact prices, summed up in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import inf

import numpy as np
from numpy.typing import NDArray

from autopar.capture.graph import Graph
from autopar.planner.balance import balanced
from autopar.planner.decisions import decisions_of
from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.fusion import Fusion
from autopar.planner.mesh import MODEL, REPLICATE, SHARD, MeshAxis
from autopar.planner.microbatches import Cut
from autopar.planner.naming import axis_names
from autopar.planner.operators import PlannedType
from autopar.planner.partition import CallCost
from autopar.planner.pins import Pins
from autopar.planner.prices import MASTER_BYTES, Known, Prices
from autopar.planner.problem import solver_problem
from autopar.planner.schedules import schedules
from autopar.planner.shapes import Chain, Shape
from autopar.planner.space import search_space
from autopar.planner.staging import Staging
from cost_models.cluster import Cluster
from cost_models.collectives import send_s
from cost_models.schedules import microbatches_in_flight, pipeline_s
from solver import Fan, Node, Problem, solve

__all__ = ["Estimate", "Estimator"]

Array = NDArray[np.float64]

STATE_BYTES = 16
"""Parameter, gradient and AdamW's two moments, 4 bytes each."""
GRADIENT_SHARE = 0.25
"""Of that, the gradient."""
MEMORY_SHARE = 0.02
"""A full device's memory costs this share of the compute, so that of two equal strategies the leaner wins."""
GAP = 0.01
"""Relative gap to which kernels are solved."""
BEST_GAIN = 0.6
"""A device takes at least this share of the time per sequence when it works on more of them at once."""
HOPELESS = 1.2
"""Shapes whose least memory is more than so many times the limit are not looked at."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """What each pipeline rank runs: an entry per rank, for one microbatch."""

    seconds: Array
    kept_bytes: Array
    held_bytes: Array
    working_bytes: Array


@dataclass(frozen=True)
class Kernel:
    """The model on one data rank: what every segment call takes for a microbatch."""

    calls: tuple[CallCost, ...]
    wire_bytes: float
    """Most bytes that go from one call to those after it."""
    dealt: dict[tuple[int, int], Ranks] = field(default_factory=dict)
    """What is known already, by ranks and stages of each."""

    def on(self, ranks: int, chunks: int = 1) -> Ranks:
        """The calls dealt evenly to so many ranks with so many stages each."""
        if (ranks, chunks) not in self.dealt:
            self.dealt[ranks, chunks] = self._on(ranks, chunks)
        return self.dealt[ranks, chunks]

    def _on(self, ranks: int, chunks: int) -> Ranks:
        ends = balanced([call.seconds[0] for call in self.calls], ranks * chunks)
        mine = [
            [
                call
                for first in range(rank, ranks * chunks, ranks)
                for call in self.calls[slice(*ends[first:][:2])]
            ]
            for rank in range(ranks)
        ]
        return Ranks(
            np.array([sum(call.seconds[0] for call in calls) for calls in mine]),
            np.array([sum(call.kept_bytes[0] for call in calls) for calls in mine]),
            np.array([sum(call.held_bytes for call in calls) for calls in mine]),
            np.array([max(call.working_bytes for call in calls) for calls in mine]),
        )


@dataclass(frozen=True, slots=True)
class KernelKey:
    """What a kernel depends on."""

    cp: int
    tp: int
    recompute: str
    sequences: int
    """At a time on one data rank."""

    def is_smaller(self, other: KernelKey) -> bool:
        """True for the same with fewer sequences."""
        same = (self.cp, self.tp, self.recompute) == (other.cp, other.tp, other.recompute)
        return same and self.sequences < other.sequences


@dataclass(frozen=True, slots=True)
class Estimate:
    """A shape and roughly what it takes."""

    shape: Shape
    step_s: float
    peak_bytes: float
    schedule: str = ""
    """Of the pipeline, where there is one."""


@dataclass
class Estimator:
    """Estimates for one model on one cluster, with what they share."""

    cluster: Cluster
    batch: int
    limit_bytes: float
    pins: Pins
    sliced: Callable[[int], tuple[Graph, Mapping[str, PlannedType]] | Cut]
    """The model written for one of so many slices of the batch."""
    kernels: dict[KernelKey, Kernel | None] = field(default_factory=dict)
    known: dict[tuple[int, int], Known] = field(default_factory=dict)
    """Conversions by context and tensor ranks."""
    fusions: dict[tuple[int, str], dict[tuple[str, str], Fusion]] = field(default_factory=dict)
    """Kernels of segments by sequences and recompute level."""
    best_s: float = inf
    """The fastest estimate so far of what fits."""

    def best(self, chains: Iterable[Chain]) -> list[Estimate]:
        """Estimates from the fastest that fits on, then from the leanest that does not.

        Pipelines without microbatches come after what else fits.
        """
        found: list[Estimate] = []
        leaner_fits: set[tuple[int, ...]] = set()
        for chain in sorted(chains, key=lambda chain: _order(chain[0], self.batch)):
            where = _ranks(chain[0])
            if where in leaner_fits:
                continue
            for shape in chain:
                made = self.estimate(shape)
                if made is None:
                    continue
                found.append(made)
                if made.peak_bytes <= self.limit_bytes:
                    if not shape.execution.waits:
                        self.best_s = min(self.best_s, made.step_s)
                    leaner_fits.add(where)
                    break
        fits = [each for each in found if each.peak_bytes <= self.limit_bytes]
        others = [each for each in found if each.peak_bytes > self.limit_bytes]
        fits.sort(key=lambda each: (each.shape.execution.waits, each.step_s))
        return fits + sorted(others, key=lambda each: each.peak_bytes)

    def estimate(self, shape: Shape) -> Estimate | None:
        """None where the model cannot be cut so, or where fewer sequences at a time tell that it is hopeless."""
        smaller = self._smaller(shape)
        if smaller is not None and self._is_hopeless(shape, *smaller):
            return None
        kernel = self._kernel(shape)
        return None if kernel is None else self._estimate(shape, kernel)

    def _smaller(self, shape: Shape) -> tuple[Kernel, float] | None:
        """A kernel of fewer sequences, and how many times as many this shape has; None where it has its own."""
        wanted = self._key(shape)
        if wanted in self.kernels:
            return None
        known = [key for key in self.kernels if key.is_smaller(wanted) and self.kernels[key] is not None]
        if not known:
            return None
        key = max(known, key=lambda key: key.sequences)
        kernel = self.kernels[key]
        assert kernel is not None
        return kernel, wanted.sequences / key.sequences

    def _is_hopeless(self, shape: Shape, smaller: Kernel, times: float) -> bool:
        """True when it could not fit, or not be fast enough, even if a device worked far better on more rows."""
        least = self._estimate(shape, smaller, times)
        slowest_s = self.best_s / BEST_GAIN
        return least.peak_bytes > HOPELESS * self.limit_bytes or least.step_s > slowest_s

    def _estimate(self, shape: Shape, kernel: Kernel, times: float = 1.0) -> Estimate:
        """With a kernel of so many times fewer sequences than the shape has, were nothing more efficient on more."""
        found = [
            self._scheduled(shape, kernel, times, schedule, chunks)
            for schedule, chunks in self._schedules(shape, len(kernel.calls))
        ]
        return min(
            found,
            key=lambda each: (each.peak_bytes > self.limit_bytes, each.step_s),
            default=Estimate(shape, inf, inf),
        )

    def _scheduled(self, shape: Shape, kernel: Kernel, times: float, schedule: str, chunks: int) -> Estimate:
        count = shape.execution.microbatches
        ranks = kernel.on(shape.pp, chunks)
        sends_s = self._sends_s(shape, chunks, times * kernel.wire_bytes)
        is_cuda = self.cluster.device.kind == "cuda"
        # On a CPU nothing hides what a rank sends, forward and backward, before and behind.
        seconds = times * ranks.seconds + (0.0 if is_cuda else 2.0 * chunks * (sends_s + np.roll(sends_s, 1)))
        pipeline = pipeline_s(
            schedule,
            list(seconds),
            microbatches=count,
            chunks=chunks,
            transfer_s=list(sends_s) if is_cuda else 0.0,
        )
        heaviest = int(ranks.held_bytes.argmax())
        upkeep_s = self._upkeep_s(shape, ranks.held_bytes[heaviest] / STATE_BYTES, count * seconds[heaviest])
        in_flight = _in_flight(schedule, shape.pp, count, chunks)
        peak_bytes = self._peak_bytes(shape, ranks, times * in_flight)
        return Estimate(shape, float(pipeline + upkeep_s), peak_bytes, schedule if shape.pp > 1 else "")

    def _schedules(self, shape: Shape, segments: int) -> list[tuple[str, int]]:
        if shape.pp == 1:
            return [("gpipe", 1)]
        return list(schedules(self.pins, shape.pp, shape.execution.microbatches, segments))

    def _sends_s(self, shape: Shape, chunks: int, wire_bytes: float) -> Array:
        """One microbatch's activations from each pipeline rank to the next, from the last to the first if need be."""
        if shape.pp == 1:
            return np.zeros(1)
        sends = [send_s(wire_bytes, link) for link in self._data_prices(shape).stage_links]
        return np.array([*sends[:-1], sends[-1] if chunks > 1 else 0.0])

    def _peak_bytes(self, shape: Shape, ranks: Ranks, in_flight: Array) -> float:
        """On the fullest pipeline rank; ``in_flight`` counts microbatches of the kernel's size."""
        execution, held = shape.execution, ranks.held_bytes
        sharded = held / (shape.dp_shard * shape.cp) if execution.zero else held
        gathered = np.zeros_like(held)
        if 0 < execution.zero < 3:
            gathered = held / STATE_BYTES * (2 + (MASTER_BYTES if execution.zero == 1 else 0))
        kept = in_flight * ranks.kept_bytes
        if shape.pp == execution.microbatches == 1:
            # Gradients come as activations go.
            held_most = np.maximum((1 - GRADIENT_SHARE) * sharded + kept, sharded)
        else:
            held_most = sharded + kept
        return float((held_most + gathered + ranks.working_bytes).max())

    def _upkeep_s(self, shape: Shape, parameters: float, compute_s: float) -> float:
        """The optimizer, and what sticks out of gathers and gradient sums beside compute."""
        prices = self._data_prices(shape)
        traffic = prices.gradient_sync_s(MASTER_BYTES * parameters) + prices.gather_s(2 * parameters)
        hidden = min(traffic, compute_s) if self.cluster.device.kind == "cuda" else 0.0
        return prices.optimizer_s(parameters) + traffic - hidden

    def _data_prices(self, shape: Shape) -> Prices:
        rests_sharded = shape.execution.zero > 0
        axes = (
            MeshAxis(shape.dp_replicate, REPLICATE),
            MeshAxis(shape.dp_shard, SHARD),
            MeshAxis(shape.cp, SHARD if rests_sharded else REPLICATE),
            MeshAxis(shape.tp, MODEL),
        )
        return Prices(self.cluster, tuple(axis for axis in axes if axis.size > 1), execution=shape.execution)

    def _key(self, shape: Shape) -> KernelKey:
        return KernelKey(shape.cp, shape.tp, shape.execution.recompute, shape.sequences(self.batch))

    def _kernel(self, shape: Shape) -> Kernel | None:
        key = self._key(shape)
        if key not in self.kernels:
            made = self.sliced(self.batch // key.sequences)
            self.kernels[key] = None if isinstance(made, Cut) else self._solved(*made, shape)
        return self.kernels[key]

    def _solved(self, graph: Graph, types: Mapping[str, PlannedType], shape: Shape) -> Kernel | None:
        """Strategies on the tensor and context ranks alone, and their prices."""
        axes = tuple(
            axis
            for axis in (MeshAxis(shape.cp, REPLICATE, "cp"), MeshAxis(shape.tp, MODEL, "tp"))
            if axis.size > 1
        )
        rest = self.cluster.devices // (shape.cp * shape.tp)
        # As for several microbatches: gradients are held beside activations.
        execution = Execution(shape.execution.is_compiled, shape.execution.recompute, 2, 0, rest)
        shared = self.known.setdefault((shape.cp, shape.tp), Known())
        fusions = self.fusions.setdefault((shape.sequences(self.batch), execution.recompute), {})
        known = Known(tables=shared.tables, steps=shared.steps, fusions=fusions)
        prices = Prices(self.cluster, axes, known, execution)
        space = search_space(graph, types, prices)
        problem = solver_problem(space)
        price = MEMORY_SHARE * _fastest_s(problem) / self.cluster.device.memory_bytes
        solution = solve(_priced(problem, price), gap=GAP)
        if solution.choice is None:
            return None
        decisions = decisions_of(space.items, solution.choice)
        names = axis_names(types, decisions, axes)
        staging = Staging(graph, types, names, decisions, prices, (execution.recompute,))
        return Kernel(staging.costs, max(map(staging.wire_bytes, range(len(graph.calls) - 1)), default=0.0))


@cache
def _in_flight(schedule: str, ranks: int, microbatches: int, chunks: int) -> Array:
    """Microbatches that each rank holds at its fullest moment."""
    if ranks == 1:
        return np.ones(1)
    return np.array(
        [
            microbatches_in_flight(
                schedule, stages=ranks, stage=rank, microbatches=microbatches, chunks=chunks
            )
            for rank in range(ranks)
        ]
    )


def _fastest_s(problem: Problem) -> float:
    """Seconds of all operators, each with its fastest strategy."""
    return float(sum(node.costs.min() for node in problem.nodes))


def _priced(problem: Problem, price: float) -> Problem:
    """The problem with usage as a part of the cost."""
    return Problem(
        nodes=tuple(_node_priced(node, price) for node in problem.nodes),
        edges=problem.edges,
        fans=tuple(_fan_priced(fan, price) for fan in problem.fans),
    )


def _node_priced(node: Node, price: float) -> Node:
    return replace(node, costs=node.costs + price * node.usages, usages=np.zeros_like(node.usages))


def _fan_priced(fan: Fan, price: float) -> Fan:
    return replace(fan, costs=fan.costs + price * fan.usages[None, :], usages=np.zeros_like(fan.usages))


def _ranks(shape: Shape) -> tuple[int, ...]:
    """What a chain of leaner shapes has in common."""
    return (shape.pp, shape.dp_replicate, shape.dp_shard, shape.cp, shape.tp, shape.execution.microbatches)


def _order(shape: Shape, batch: int) -> tuple[int, int]:
    """Few sequences at a time first, which tell of many; little recomputation first, which is faster."""
    return shape.sequences(batch), RECOMPUTE_LEVELS.index(shape.execution.recompute)
