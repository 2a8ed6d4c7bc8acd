"""What a shape would take: its kernels' exact prices, summed up in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import inf

import numpy as np
from numpy.typing import NDArray

from autopar.capture.graph import Graph
from autopar.planner.balance import balanced
from autopar.planner.decisions import decisions_of
from autopar.planner.diagnosis import idle_axis
from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.fusion import Fusion
from autopar.planner.memory import device_overhead
from autopar.planner.mesh import MODEL, REPLICATE, SHARD, MeshAxis
from autopar.planner.microbatches import Cut
from autopar.planner.naming import axis_names
from autopar.planner.operators import PlannedType
from autopar.planner.partition import CallCost
from autopar.planner.pins import Pins
from autopar.planner.prices import MASTER_BYTES, Known, Prices
from autopar.planner.problem import priced, solver_problem
from autopar.planner.schedules import in_flight_by_rank, schedules
from autopar.planner.shapes import Chain, Shape
from autopar.planner.space import Space, search_space
from autopar.planner.staging import Staging
from cost_models.cluster import Cluster
from cost_models.collectives import send_s
from cost_models.schedules import pipeline_s
from solver import Problem, solve

__all__ = ["Estimate", "Estimator"]

Array = NDArray[np.float64]

STATE_BYTES = 16
"""Parameter, gradient and AdamW's two moments, 4 bytes each."""
GRADIENT_SHARE = 0.25
"""Of that, the gradient."""
MEMORY_SHARES = (0.02, 0.5)
"""A full device's memory costs this share of the compute: first as little as makes the leaner of two equal
strategies win, and where that does not fit, so much that leaner strategies win although they are slower."""
GAP = 0.01
"""Relative gap to which kernels are solved."""
BEST_GAIN = 0.6
"""Each more sequence takes at least this share of what the last ones took."""
SURE = 0.9
"""Shapes whose memory is less than this share of the limit surely fit."""
HOPELESS = 1.2
"""Shapes whose least memory is more than so many times the limit are not looked at."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """What each pipeline rank runs, for one microbatch: a row per rank, a column per call, zeros after the last."""

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

    @cached_property
    def total_s(self) -> float:
        """All calls."""
        return sum(call.seconds[0] for call in self.calls)

    def on(self, ranks: int, chunks: int = 1) -> Ranks:
        """The calls dealt evenly to so many ranks with so many stages each."""
        if (ranks, chunks) not in self.dealt:
            self.dealt[ranks, chunks] = self._on(ranks, chunks)
        return self.dealt[ranks, chunks]

    def _on(self, ranks: int, chunks: int) -> Ranks:
        stages = list(pairwise(balanced([call.seconds[0] for call in self.calls], ranks * chunks)))
        mine = [
            [call for stage in stages[rank::ranks] for call in self.calls[slice(*stage)]]
            for rank in range(ranks)
        ]
        found = np.zeros((4, ranks, max(map(len, mine))))
        for rank, calls in enumerate(mine):
            found[:, rank, : len(calls)] = np.array(
                [(call.seconds[0], call.kept_bytes[0], call.held_bytes, call.working_bytes) for call in calls]
            ).T
        return Ranks(*found)


@dataclass(frozen=True, slots=True)
class KernelKey:
    """What a kernel depends on."""

    cp: int
    tp: int
    recompute: str
    memory_share: float
    """What a full device's memory costs."""
    sequences: int
    """At a time on one data rank."""

    def is_smaller(self, other: KernelKey) -> bool:
        """True for the same with fewer sequences."""
        return replace(self, sequences=other.sequences) == other and self.sequences < other.sequences


@dataclass(frozen=True, slots=True)
class Estimate:
    """A shape and roughly what it takes."""

    shape: Shape
    step_s: float
    peak_bytes: float
    schedule: str = ""
    """Of the pipeline, where there is one."""
    memory_share: float = 0.0
    """What a full device's memory cost its kernel."""


@dataclass(frozen=True, slots=True)
class Posed:
    """The model in slices, and the problem of its strategies on some ranks."""

    graph: Graph
    types: Mapping[str, PlannedType]
    space: Space
    problem: Problem


@dataclass(frozen=True, slots=True)
class Times:
    """How many times as much as its kernel a shape takes."""

    seconds: float = 1.0
    size: float = 1.0


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
    posed: dict[KernelKey, Posed | None] = field(default_factory=dict)
    known: dict[tuple[int, int], Known] = field(default_factory=dict)
    """Conversions by context and tensor ranks."""
    fusions: dict[tuple[int, str], dict[tuple[str, str], Fusion]] = field(default_factory=dict)
    """Kernels of segments by sequences and recompute level."""
    best_s: float = inf
    """The fastest estimate so far of what surely fits."""

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
                made = self._leanest(shape)
                if made is None:
                    continue
                found.append(made)
                if made.peak_bytes <= self.limit_bytes:
                    if not shape.execution.waits and made.peak_bytes <= SURE * self.limit_bytes:
                        self.best_s = min(self.best_s, made.step_s)
                    # Sharding what is replicated spares optimizer time; beyond that, leaner is slower.
                    if shape.execution.zero:
                        leaner_fits.add(where)
                        break
        fits = [each for each in found if each.peak_bytes <= self.limit_bytes]
        others = [each for each in found if each.peak_bytes > self.limit_bytes]
        fits.sort(key=lambda each: (each.shape.execution.waits, each.step_s))
        return fits + sorted(others, key=lambda each: each.peak_bytes)

    def _leanest(self, shape: Shape) -> Estimate | None:
        """With the fastest strategies, or with lean ones where those do not fit and lean ones might win."""
        found = None
        for share in MEMORY_SHARES:
            made = self.estimate(shape, share)
            if made is None:
                return found
            if found is None or made.peak_bytes < found.peak_bytes:
                found = made
            if made.peak_bytes <= self.limit_bytes or made.step_s > self.best_s:
                break
        return found

    def estimate(self, shape: Shape, memory_share: float = MEMORY_SHARES[0]) -> Estimate | None:
        """None where the model cannot be cut so, or where fewer sequences at a time tell that it is hopeless."""
        wanted = self._key(shape, memory_share)
        smaller = self._smaller(wanted)
        if smaller and self._is_hopeless(shape, smaller):
            return None
        kernel = self._kernel(wanted, shape)
        return None if kernel is None else replace(self._estimate(shape, kernel), memory_share=memory_share)

    def _smaller(self, wanted: KernelKey) -> list[tuple[int, Kernel]]:
        """Kernels of fewer sequences, and of how many, fewest first; none where the wanted one is known."""
        if wanted in self.kernels:
            return []
        known = {key.sequences: kernel for key, kernel in self.kernels.items() if key.is_smaller(wanted)}
        return [(count, kernel) for count, kernel in sorted(known.items()) if kernel is not None]

    def _is_hopeless(self, shape: Shape, smaller: Sequence[tuple[int, Kernel]]) -> bool:
        """True when it could not fit, or not be fast enough, even if a device worked far better on more rows.

        Seconds are at least those of fewer sequences; how they grow is told by two kernels.
        """
        count, kernel = smaller[-1]
        more = shape.sequences(self.batch) - count
        growth = 0.0
        if len(smaller) > 1:
            fewer, least = smaller[-2]
            growth = max(0.0, 1.0 - least.total_s / kernel.total_s) / (count - fewer)
        found = self._estimate(shape, kernel, Times(1.0 + BEST_GAIN * growth * more, 1.0 + more / count))
        return found.peak_bytes > HOPELESS * self.limit_bytes or found.step_s > self.best_s

    def _estimate(self, shape: Shape, kernel: Kernel, times: Times = Times()) -> Estimate:
        prices = self._data_prices(shape)
        found = [
            self._scheduled(shape, kernel, times, prices, schedule, chunks)
            for schedule, chunks in self._schedules(shape, len(kernel.calls))
        ]
        return min(
            found,
            key=lambda each: (each.peak_bytes > self.limit_bytes, each.step_s),
            default=Estimate(shape, inf, inf),
        )

    def _scheduled(
        self, shape: Shape, kernel: Kernel, times: Times, prices: Prices, schedule: str, chunks: int
    ) -> Estimate:
        count = shape.execution.microbatches
        ranks = kernel.on(shape.pp, chunks)
        sends_s = _sends_s(prices, chunks, times.size * kernel.wire_bytes)
        is_cuda = self.cluster.device.kind == "cuda"
        # On a CPU nothing hides what a rank sends, forward and backward, before and behind.
        seconds = times.seconds * ranks.seconds.sum(1) + (
            0.0 if is_cuda else 2.0 * chunks * (sends_s + np.roll(sends_s, 1))
        )
        pipeline = pipeline_s(
            schedule,
            list(seconds),
            microbatches=count,
            chunks=chunks,
            transfer_s=list(sends_s) if is_cuda else 0.0,
        )
        held = ranks.held_bytes.sum(1)
        heaviest = int(held.argmax())
        upkeep_s = _upkeep_s(prices, held[heaviest] / STATE_BYTES, count * seconds[heaviest])
        in_flight = np.array(in_flight_by_rank(schedule, shape.pp, count, chunks))
        peak_bytes = self._peak_bytes(shape, ranks, times.size, in_flight)
        return Estimate(shape, float(pipeline + upkeep_s), peak_bytes, schedule if shape.pp > 1 else "")

    def _schedules(self, shape: Shape, segments: int) -> list[tuple[str, int]]:
        if shape.pp == 1:
            return [("gpipe", 1)]
        return list(schedules(self.pins, shape.pp, shape.execution.microbatches, segments))

    def _peak_bytes(self, shape: Shape, ranks: Ranks, size: float, in_flight: Array) -> float:
        """On the fullest pipeline rank, in the backward of some call, ``size`` times the kernel's sequences at a time.

        Gradients of one microbatch come as activations go; of several they stay.
        """
        execution = shape.execution
        ways = shape.dp_shard * shape.cp if execution.zero else 1
        held, kept = ranks.held_bytes / ways, size * ranks.kept_bytes
        gradients = GRADIENT_SHARE * held
        gathered = np.zeros(shape.pp)
        if 0 < execution.zero < 3:
            copies = 2 + (MASTER_BYTES if execution.zero == 1 else 0)
            gathered = ranks.held_bytes.sum(1) / STATE_BYTES * copies
        left = gradients.sum(1, keepdims=True)
        if shape.pp == execution.microbatches == 1:
            left = left - np.cumsum(gradients, 1)
        moments = np.cumsum(kept, 1) + ranks.working_bytes + left
        fullest = np.maximum(moments.max(1), gradients.sum(1)) + (in_flight - 1) * kept.sum(1)
        peak = (fullest + gathered + (held - gradients).sum(1)).max()
        return float(peak) + self._data_overhead(shape)

    def _data_overhead(self, shape: Shape) -> int:
        """Buffers for communication over data ranks, which kernels have none of."""
        device, kernel_axes = self.cluster.device, (shape.cp > 1) + (shape.tp > 1)
        data_axes = (shape.dp_replicate > 1) + (shape.dp_shard > 1)
        return device_overhead(device, kernel_axes + data_axes) - device_overhead(device, kernel_axes)

    def _data_prices(self, shape: Shape) -> Prices:
        rests_sharded = shape.execution.zero > 0
        axes = (
            MeshAxis(shape.dp_replicate, REPLICATE),
            MeshAxis(shape.dp_shard, SHARD),
            MeshAxis(shape.cp, SHARD if rests_sharded else REPLICATE),
            MeshAxis(shape.tp, MODEL),
        )
        return Prices(self.cluster, tuple(axis for axis in axes if axis.size > 1), execution=shape.execution)

    def _key(self, shape: Shape, memory_share: float) -> KernelKey:
        return KernelKey(
            shape.cp, shape.tp, shape.execution.recompute, memory_share, shape.sequences(self.batch)
        )

    def _kernel(self, key: KernelKey, shape: Shape) -> Kernel | None:
        if key not in self.kernels:
            posed = self._posed(shape, replace(key, memory_share=0.0))
            self.kernels[key] = self._solved(posed, key) if posed else None
        return self.kernels[key]

    def _posed(self, shape: Shape, key: KernelKey) -> Posed | None:
        """The choice of strategies on the tensor and context ranks alone; None where the batch cannot be cut so."""
        if key in self.posed:
            return self.posed[key]
        made = self.sliced(self.batch // key.sequences)
        if isinstance(made, Cut):
            return self.posed.setdefault(key, None)
        ranks = (MeshAxis(key.cp, REPLICATE, "cp"), MeshAxis(key.tp, MODEL))
        # As for several microbatches: gradients are held beside activations.
        rest = self.cluster.devices // (key.cp * key.tp)
        execution = Execution(shape.execution.is_compiled, key.recompute, 2, 0, rest)
        shared = self.known.setdefault((key.cp, key.tp), Known())
        fusions = self.fusions.setdefault((key.sequences, key.recompute), {})
        known = Known(tables=shared.tables, steps=shared.steps, fusions=fusions)
        axes = tuple(axis for axis in ranks if axis.size > 1)
        space = search_space(*made, Prices(self.cluster, axes, known, execution))
        return self.posed.setdefault(key, Posed(*made, space, solver_problem(space)))

    def _solved(self, posed: Posed, key: KernelKey) -> Kernel | None:
        """The best strategies and their prices; None where some ranks have no part."""
        prices, memory_bytes = posed.space.prices, self.cluster.device.memory_bytes
        solution = solve(priced(posed.problem, key.memory_share, prices.execution, memory_bytes), gap=GAP)
        if solution.choice is None:
            return None
        decisions = decisions_of(posed.space.items, solution.choice)
        names = axis_names(posed.types, decisions, prices.axes)
        staging = Staging(posed.graph, posed.types, names, decisions, prices, (key.recompute,))
        if idle_axis(staging.realized[key.recompute].sharded, posed.types) is not None:
            return None
        wires = map(staging.wire_bytes, range(len(posed.graph.calls) - 1))
        return Kernel(staging.costs, max(wires, default=0.0))


def _sends_s(prices: Prices, chunks: int, wire_bytes: float) -> Array:
    """One microbatch's activations from each pipeline rank to the next, from the last to the first if need be."""
    if prices.execution.stage_ranks == 1:
        return np.zeros(1)
    sends = [send_s(wire_bytes, link) for link in prices.stage_links]
    return np.array([*sends[:-1], sends[-1] if chunks > 1 else 0.0])


def _upkeep_s(prices: Prices, parameters: float, compute_s: float) -> float:
    """The optimizer, and what sticks out of gathers and gradient sums beside compute."""
    traffic = prices.gradient_sync_s(MASTER_BYTES * parameters) + prices.gather_s(2 * parameters)
    hidden = min(traffic, compute_s) if prices.cluster.device.kind == "cuda" else 0.0
    return prices.optimizer_s(parameters) + traffic - hidden


def _ranks(shape: Shape) -> tuple[int, ...]:
    """What a chain of leaner shapes has in common."""
    return (shape.pp, shape.dp_replicate, shape.dp_shard, shape.cp, shape.tp, shape.execution.microbatches)


def _order(shape: Shape, batch: int) -> tuple[int, int]:
    """Few sequences at a time first, which tell of many; little recomputation first, which is faster."""
    return shape.sequences(batch), RECOMPUTE_LEVELS.index(shape.execution.recompute)
