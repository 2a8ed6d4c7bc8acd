"""What a shape would take: its kernels' exact prices, summed up in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf

import numpy as np

from autopar.capture.graph import Graph
from autopar.planner.decisions import decisions_of
from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
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
from cost_models.schedules import microbatches_in_flight, pipeline_s
from solver import Fan, Node, Problem, solve

__all__ = ["Estimate", "Estimator"]

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
class Kernel:
    """The model on one data rank: prices of a microbatch, by segment call of a folded model."""

    cost: Mapping[str, CallCost]
    """By segment type."""
    counts: Mapping[str, int]

    def total(self, of: Callable[[CallCost], float]) -> float:
        """Sum over all calls."""
        return sum(self.counts[name] * of(cost) for name, cost in self.cost.items())

    def scaled(self, times: float) -> Kernel:
        """What so many times as many sequences would take, if nothing got more efficient."""
        return Kernel(
            {
                name: replace(
                    cost,
                    seconds=tuple(times * seconds for seconds in cost.seconds),
                    kept_bytes=tuple(times * kept for kept in cost.kept_bytes),
                )
                for name, cost in self.cost.items()
            },
            self.counts,
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
        kernel = smaller.scaled(times)
        least = self._estimate(shape, kernel)
        slowest_s = self.best_s / BEST_GAIN
        return least.peak_bytes > HOPELESS * self.limit_bytes or least.step_s > slowest_s

    def _estimate(self, shape: Shape, kernel: Kernel) -> Estimate:
        count = shape.execution.microbatches
        stage_s = self._stage_s(kernel, shape.pp)
        held = kernel.total(lambda cost: cost.held_bytes) / shape.pp
        upkeep_s = self._upkeep_s(shape, held / STATE_BYTES, count * stage_s)
        found = [
            Estimate(
                shape,
                pipeline_s(schedule, [stage_s] * shape.pp, microbatches=count, chunks=chunks) + upkeep_s,
                self._peak_bytes(kernel, shape, held, schedule, chunks),
            )
            for schedule, chunks in self._schedules(shape, sum(kernel.counts.values()))
        ]
        return min(
            found,
            key=lambda each: (each.peak_bytes > self.limit_bytes, each.step_s),
            default=Estimate(shape, inf, inf),
        )

    def _schedules(self, shape: Shape, segments: int) -> list[tuple[str, int]]:
        if shape.pp == 1:
            return [("gpipe", 1)]
        return list(schedules(self.pins, shape.pp, shape.execution.microbatches, segments))

    def _stage_s(self, kernel: Kernel, pp: int) -> float:
        """The slowest stage: repeated blocks come whole, and the largest single call fits nowhere else."""
        seconds = {name: cost.seconds[0] for name, cost in kernel.cost.items()}
        total = kernel.total(lambda cost: cost.seconds[0])
        if pp == 1:
            return total
        most = max(kernel.counts, key=lambda name: kernel.counts[name])
        return max(total / pp, max(seconds.values()), ceil(kernel.counts[most] / pp) * seconds[most])

    def _peak_bytes(self, kernel: Kernel, shape: Shape, held: float, schedule: str, chunks: int) -> float:
        """On the first stage, with the most microbatches in flight."""
        execution, pp = shape.execution, shape.pp
        in_flight = 1.0
        if pp > 1:
            in_flight = microbatches_in_flight(
                schedule, stages=pp, stage=0, microbatches=execution.microbatches, chunks=chunks
            )
        kept = kernel.total(lambda cost: cost.kept_bytes[0]) / pp
        sharded = held / (shape.dp_shard * shape.cp) if execution.zero else held
        gathered = 0.0
        if 0 < execution.zero < 3:
            gathered = held / STATE_BYTES * (2 + (MASTER_BYTES if execution.zero == 1 else 0))
        working = max(cost.working_bytes for cost in kernel.cost.values())
        if pp == execution.microbatches == 1:
            # Gradients come as activations go.
            return gathered + working + max((1 - GRADIENT_SHARE) * sharded + kept, sharded)
        return sharded + gathered + in_flight * kept + working

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
        prices = Prices(self.cluster, axes, Known(tables=shared.tables, steps=shared.steps), execution)
        space = search_space(graph, types, prices)
        problem = solver_problem(space)
        price = MEMORY_SHARE * _fastest_s(problem) / self.cluster.device.memory_bytes
        solution = solve(_priced(problem, price), gap=GAP)
        if solution.choice is None:
            return None
        decisions = decisions_of(space.items, solution.choice)
        names = axis_names(types, decisions, axes)
        costs = Staging(graph, types, names, decisions, prices, (execution.recompute,)).costs
        by_type = {call.type: cost for call, cost in zip(graph.calls, costs, strict=True)}
        return Kernel(by_type, Counter(call.type for call in graph.calls))


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
