"""The search: every candidate mesh and execution, the best strategies on each, the fastest plan that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, prod

from autopar.capture.biases import without_biases
from autopar.capture.graph import Graph
from autopar.errors import AutoparError
from autopar.planner.contradictions import Facts, check_pins
from autopar.planner.decisions import decisions_of
from autopar.planner.diagnosis import idle_axis, nothing_as_pinned, nothing_fits, nothing_to_do, sequences_of
from autopar.planner.estimate import Estimate, Estimator
from autopar.planner.execution import Execution
from autopar.planner.executions import Chain, execution_chains, stage_levels
from autopar.planner.kept_pins import broken_pins
from autopar.planner.memory import Memory, device_overhead
from autopar.planner.mesh import MeshAxis, candidate_meshes
from autopar.planner.microbatches import Cut, batch_size, in_microbatches
from autopar.planner.naming import axis_names
from autopar.planner.operators import PlannedType, planned_types
from autopar.planner.pins import Pins
from autopar.planner.prices import Known, Prices
from autopar.planner.problem import priced, solver_problem
from autopar.planner.realize import Realized, realize
from autopar.planner.roles import weight_dims
from autopar.planner.shapes import Shape, has_schedule, shapes
from autopar.planner.space import Keep, Space, search_space
from autopar.planner.staging import Staged, Staging
from autopar.planner.step import step_s
from cost_models.cluster import Cluster
from solver import Solution, Status, evaluate, solve

__all__ = ["Found", "Options", "Search", "Tried", "search"]

TIGHTENINGS = 4
"""How often the limit on kept bytes is lowered until the whole peak fits."""
UNLIMITED_BYTES = 2**62
GAP = 1e-4
"""Relative gap to which strategies are optimal where memory is no limit."""
LIMITED_GAP = 0.005
"""The same where it is one, and proofs are long."""
PROMISING = 1.1
"""Shapes whose estimate is further than this from the best plan are not planned exactly."""
LEAST_EXACT, MOST_EXACT, MOST_TRIED = 3, 4, 24
"""Shapes that are planned exactly and fit: at least, and at most; shapes that are planned exactly in all."""
NEAR, MOST_NEAR = 1.15, 3
"""So many faster shapes, whose estimate is not further than this beyond the limit, are tried too."""
MOST_ESTIMATES = 12
"""Of the other shapes, so many are told with what they would roughly take."""
LEANER = 0.98
"""More microbatches must take less than this share of the memory of fewer, or still more are not tried."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asks of the search."""

    pins: Pins = field(default_factory=Pins)
    memory_bytes: int | None = None
    """Limit per device; the device's own capacity where None."""
    time_limit_s: float = 10.0
    """For the strategies on one mesh."""
    keep: Keep | None = None
    """What the search may choose from, where that is not everything."""
    is_compiled: bool = False
    """The program's blocks will go through ``torch.compile``."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One mesh with one execution, and the best plan on it."""

    realized: Realized
    solution: Solution
    step_s: float
    execution: Execution
    excess_bytes: int = 0
    """By which the strategies exceed the limit where nothing beyond ``execution`` is recomputed."""
    staged: Staged | None = None
    """Stages of a pipeline, where there is one."""
    shape: Shape | None = None
    """What was asked for, where the batch can be cut."""

    @property
    def memory(self) -> Memory:
        """Of the fullest device."""
        memories = self.staged.memory if self.staged else (self.realized.memory,)
        return max(memories, key=lambda memory: memory.peak)

    @property
    def peak_bytes(self) -> int:
        """Of the fullest device."""
        return self.memory.peak


@dataclass(frozen=True, slots=True)
class Found:
    """The chosen plan and what it was chosen from."""

    best: Tried
    runner_ups: tuple[Tried, ...]
    """Best plans of the other meshes, fastest first."""
    misfits: int
    """Meshes on which nothing fits."""
    wall_s: float
    estimates: tuple[Estimate, ...] = ()
    """Of other shapes that fit, the best of all that compute the same, fastest first."""


@dataclass(frozen=True, slots=True)
class Model:
    """A graph made ready for any mesh."""

    graph: Graph
    types: Mapping[str, PlannedType]

    @staticmethod
    def of(graph: Graph) -> Model:
        return Model(graph, planned_types(graph))


def search(graph: Graph, cluster: Cluster, options: Options) -> Found:
    """The fastest plan for ``graph`` on all devices of ``cluster``.

    Raises ``InfeasiblePlanError`` when nothing fits the memory limit, or when no axis divides the work, and
    ``PinError`` when the pins do not suit each other, the cluster or the model.
    """
    start_s = time.perf_counter()
    facts = Facts(cluster.devices, batch_size(graph), sequences_of(graph), len(graph.calls))
    check_pins(facts, options.pins)
    return Search(graph, cluster, options).run(start_s)


@dataclass
class Search:
    """One search: what it was asked, and what it has worked out so far."""

    graph: Graph
    cluster: Cluster
    options: Options
    models: dict[int, Model | Cut] = field(default_factory=dict)
    """By number of microbatches."""
    conversions: dict[object, tuple[dict, dict]] = field(default_factory=dict)  # type: ignore[type-arg]
    """Tables and steps of conversions by what they depend on: sizes, roles and the place of the axes."""
    known: dict[tuple[int, tuple[int, ...], object], Known] = field(default_factory=dict)
    """Prices by number of microbatches, sizes of the mesh and what else they depend on."""
    estimates: list[Estimate] = field(default_factory=list)
    """Of every shape, the best first."""

    @cached_property
    def limit(self) -> int:
        return self.options.memory_bytes or self.cluster.device.memory_bytes

    @cached_property
    def whole(self) -> Model:
        return Model.of(without_biases(self.graph))

    def run(self, start_s: float, *, is_thorough: bool = False) -> Found:
        """The fastest of the best plans on every mesh; of unusual ones too where the others leave devices idle."""
        tried: list[Tried] = []
        misfits: list[Tried] = []
        for found in self._candidates(is_thorough=is_thorough):
            (tried if found.peak_bytes <= self.limit else misfits).append(found)
        tried.sort(key=lambda each: each.step_s)
        tried = [each for each in tried if not _splits_an_axis(each)] or tried
        tried = [each for each in tried if not each.execution.waits] or tried
        idle = [idle_axis(each.realized.sharded, self.whole.types) for each in tried]
        busy = [each for each, axis in zip(tried, idle, strict=True) if axis is None]
        if not tried:
            raise self._nothing(misfits)
        if not busy and not is_thorough:
            return self.run(start_s, is_thorough=True)
        if not busy:
            assert idle[0] is not None
            whole, pins = self.whole, self.options.pins
            raise nothing_to_do(idle[0], whole.graph, whole.types, pins, self.cluster.devices)
        wall_s = time.perf_counter() - start_s
        return Found(busy[0], tuple(busy[1:]), len(misfits), wall_s, self._other_shapes(busy))

    def _other_shapes(self, planned: Sequence[Tried]) -> tuple[Estimate, ...]:
        """The best estimate of every kind of shape that was not planned."""
        known = {each.shape.compute for each in planned if each.shape}
        found: dict[object, Estimate] = {}
        for estimate in self.estimates:
            if estimate.peak_bytes <= self.limit and estimate.shape.compute not in known:
                found.setdefault(estimate.shape.compute, estimate)
        return tuple(found.values())[:MOST_ESTIMATES]

    def _nothing(self, misfits: Sequence[Tried]) -> AutoparError:
        """Why there is no plan."""
        cuts = {count: model for count, model in self.models.items() if isinstance(model, Cut)}
        if misfits:
            return nothing_fits([(each.realized.sharded, each.memory) for each in misfits], self.limit, cuts)
        return nothing_as_pinned(self.options.pins, batch_size(self.graph), cuts)

    def _candidates(self, *, is_thorough: bool) -> Iterator[Tried]:
        """The best plans of the shapes that look best; of every mesh, where the batch cannot be cut.

        Of shapes that compute the same the first one that fits is enough, as far as its estimate was right.
        """
        self.estimates = self._estimates(is_thorough=is_thorough)
        best_s, tried, fitting = inf, 0, 0
        sure: dict[object, float] = {}
        for estimate in self.estimates:
            most = MOST_EXACT if estimate.step_s <= PROMISING * best_s else LEAST_EXACT
            if fitting >= most or tried >= MOST_TRIED:
                break
            if estimate.step_s > sure.get(estimate.shape.compute, inf):
                continue
            found = self.exactly(estimate)
            if found is not None:
                tried += 1
                if found.peak_bytes <= self.limit:
                    fitting += 1
                    best_s = min(best_s, found.step_s)
                    error = abs(found.step_s - estimate.step_s)
                    sure.setdefault(estimate.shape.compute, estimate.step_s + error)
                yield found
        for estimate in self._nearly_fitting(best_s):
            found = self.exactly(estimate)
            if found is not None:
                yield found
        is_uncut = any(isinstance(model, Cut) for model in self.models.values())
        if (is_uncut or not tried) and not self.options.pins.needs_stages:
            for axes in candidate_meshes(self.cluster.devices, self.options.pins):
                yield from self._on_mesh(axes)

    def _nearly_fitting(self, best_s: float) -> list[Estimate]:
        """Shapes that would be faster and, for all that an estimate can tell, might fit; the fastest first."""
        found: dict[object, Estimate] = {}
        for estimate in sorted(self.estimates, key=lambda each: each.step_s):
            is_near = self.limit < estimate.peak_bytes <= NEAR * self.limit
            if is_near and estimate.step_s < best_s < inf and not estimate.shape.execution.waits:
                found.setdefault(estimate.shape.compute, estimate)
        return list(found.values())[:MOST_NEAR]

    def _estimates(self, *, is_thorough: bool) -> list[Estimate]:
        """What every shape would roughly take, the best first."""
        chains = self.chains(is_thorough=is_thorough) or self.chains(is_thorough=True)
        batch, pins = batch_size(self.graph), self.options.pins
        return Estimator(self.cluster, batch, self.limit, pins, self._sliced).best(chains)

    def chains(self, *, is_thorough: bool) -> list[tuple[Shape, ...]]:
        """Shapes that the pins allow; those that nobody would choose unless they are all that is left, if asked."""
        calls, pins = self.whole.graph.calls, self.options.pins
        blocks = sum(1 for call in calls if call.module) or 1
        found = shapes(
            self.cluster,
            batch_size(self.graph),
            blocks,
            pins,
            is_compiled=self.options.is_compiled,
            is_thorough=is_thorough,
        )
        return [chain for chain in found if self._is_sound(chain[0])]

    def _is_sound(self, shape: Shape) -> bool:
        """True when a schedule runs the shape, and every axis has something that it divides."""
        pins, calls = self.options.pins, self.whole.graph.calls
        lengths = sequences_of(self.graph)
        cuts_sequences = not lengths or any(length % shape.cp == 0 for length in lengths)
        cuts_weights = (
            shape.tp == 1 or "tp" in pins.sizes or any(d % shape.tp == 0 for d in self._weight_dims)
        )
        return cuts_sequences and cuts_weights and has_schedule(shape, pins, len(calls))

    @cached_property
    def _weight_dims(self) -> tuple[int, ...]:
        return weight_dims(self.whole.types)

    def _sliced(self, count: int) -> tuple[Graph, Mapping[str, PlannedType]] | Cut:
        model = self._model(count)
        return model if isinstance(model, Cut) else (model.graph, model.types)

    def exactly(self, estimate: Estimate) -> Tried | None:
        """The best plan of a shape, every operator free; None where there is none as pinned."""
        shape = estimate.shape
        model = self._model(shape.execution.microbatches)
        if isinstance(model, Cut):
            return None
        prices = self._prices(shape.axes(self.options.pins), shape.execution)
        found = _best_on(model, prices, self.limit, self.options, estimate.memory_share)
        return replace(found, shape=shape) if found is not None and self._is_as_pinned(found) else None

    def _on_mesh(self, axes: tuple[MeshAxis, ...]) -> list[Tried]:
        """The best plan of every chain of executions; where one fits, leaner chains are slower."""
        found = []
        chains = execution_chains(
            axes, self.options.pins, batch_size(self.graph), is_compiled=self.options.is_compiled
        )
        for chain in chains:
            best = self._on_chain(axes, chain)
            if best is not None:
                found.append(best)
                if best.peak_bytes <= self.limit and best.execution.microbatches == chain[0].microbatches:
                    break
        return found

    def _on_chain(self, axes: tuple[MeshAxis, ...], chain: Chain) -> Tried | None:
        """The first execution that fits, or the leanest one."""
        leanest = None
        for execution in chain:
            model = self._model(execution.microbatches)
            if isinstance(model, Cut):
                continue
            found = _best_on(model, self._prices(axes, execution), self.limit, self.options)
            if found is None or not self._is_as_pinned(found):
                continue
            if found.peak_bytes <= self.limit:
                return found
            if leanest is not None and found.peak_bytes > LEANER * leanest.peak_bytes:
                break
            leanest = found
        return leanest

    def _model(self, microbatches: int) -> Model | Cut:
        if microbatches not in self.models:
            graph = in_microbatches(self.whole.graph, self.whole.types, microbatches)
            self.models[microbatches] = graph if isinstance(graph, Cut) else Model.of(graph)
        return self.models[microbatches]

    def _prices(self, axes: tuple[MeshAxis, ...], execution: Execution) -> Prices:
        sizes = tuple(axis.size for axis in axes)
        key = (
            execution.microbatches,
            sizes,
            (execution.is_compiled, execution.recompute, execution.stage_ranks, tuple(a.label for a in axes)),
        )
        if key not in self.known:
            paths = (sizes, tuple(axis.label for axis in axes), execution.stage_ranks)
            tables, steps = self.conversions.setdefault(paths, ({}, {}))
            self.known[key] = Known(tables=tables, steps=steps)
        return Prices(self.cluster, axes, self.known[key], execution)

    def _is_as_pinned(self, found: Tried) -> bool:
        """True when the plan does everything that the pins say."""
        sharded = found.realized.sharded
        return not broken_pins(self.options.pins, sharded, microbatch_size(found.realized))


def microbatch_size(realized: Realized) -> int:
    """Sequences that one data rank takes at a time."""
    sharded = realized.sharded
    rows = batch_size(sharded.graph)
    name = next((i.value.name for i in sharded.graph.inputs if i.value.shape[:1] == (rows,)), "")
    layout = sharded.inputs.get(name, ())
    ways = prod(
        axis.size
        for axis, placement in zip(sharded.axes, layout, strict=False)
        if placement.is_shard and placement.dim == 0
    )
    return rows // ways


def _splits_an_axis(tried: Tried) -> bool:
    """True when two data axes do the same: a mesh with one axis in their place is tried too."""
    roles = [axis.name.removesuffix("_2") for axis in tried.realized.sharded.axes if axis.is_data]
    return len(set(roles)) < len(roles)


def _best_on(
    model: Model, prices: Prices, limit: int, options: Options, memory_share: float = 0.0
) -> Tried | None:
    """The best plan on one mesh; the leanest one found where none fits.

    On stages strategies are asked to be as lean as ``memory_share`` says: what stages send each other, and how
    much they must recompute, follows from strategies and is not in their price.
    """
    space = search_space(model.graph, model.types, prices, options.keep)
    problem = solver_problem(space)
    solution = solve(problem, time_limit_s=options.time_limit_s, gap=GAP)
    if solution.choice is None:
        return None
    if prices.execution.stage_ranks > 1:
        lean = priced(problem, memory_share, prices.execution, prices.cluster.device.memory_bytes)
        choice = solve(lean, time_limit_s=options.time_limit_s, gap=GAP).choice or solution.choice
        solution = replace(
            solution, choice=choice, cost=evaluate(problem, choice).cost, status=Status.feasible
        )
    found = [_tried(model, space, solution, limit, options.pins)]
    allowance = limit - device_overhead(prices.cluster.device, len(prices.axes))
    for _ in range(TIGHTENINGS):
        if found[-1].excess_bytes <= 0 or allowance <= 0:
            break
        problem = solver_problem(space, float(allowance))
        solution = solve(problem, time_limit_s=options.time_limit_s, gap=LIMITED_GAP, is_exact=False)
        if solution.choice is None:
            break
        found.append(_tried(model, space, solution, limit, options.pins))
        # What is not kept (gathered parameters, temporaries) follows from the choice: make room for it.
        kept = evaluate(problem, solution.choice).peak_usage
        allowance = math.floor(min(allowance, kept) - found[-1].excess_bytes)
    fitting = [each for each in found if each.peak_bytes <= limit]
    return min(fitting, key=lambda each: each.step_s, default=min(found, key=lambda each: each.peak_bytes))


def _tried(model: Model, space: Space, solution: Solution, limit: int, pins: Pins) -> Tried:
    assert solution.choice is not None
    decisions = decisions_of(space.items, solution.choice)
    names = axis_names(model.types, decisions, space.prices.axes)
    realized = realize(model.graph, model.types, names, decisions, space.prices)
    if solution.status is Status.optimal:
        assert math.isclose(realized.objective_s, solution.cost, rel_tol=1e-6), (
            f"the plan costs {realized.objective_s} s, the solver says {solution.cost} s"
        )
    execution = space.prices.execution
    if execution.stage_ranks == 1:
        excess = realized.memory.peak - limit
        return Tried(realized, solution, step_s(realized, space.prices), execution, excess)
    staging = Staging(model.graph, model.types, names, decisions, space.prices, stage_levels(execution, pins))
    staged = staging.best(pins, limit)
    is_easy = staged is not None and {stage.recompute for stage in staged.stages} == {execution.recompute}
    fastest = staged if is_easy else staging.best(pins, UNLIMITED_BYTES)
    assert fastest is not None, "shapes have a schedule, and no more stages than segment calls"
    chosen = staged or fastest
    sharded = replace(
        realized.sharded, stages=chosen.stages, schedule=chosen.schedule, stage_ranks=execution.stage_ranks
    )
    excess = fastest.peak - limit
    return Tried(replace(realized, sharded=sharded), solution, chosen.step_s, execution, excess, chosen)
