"""The search: every candidate mesh, the best strategies on each, and the fastest plan that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.capture.biases import without_biases
from autopar.capture.graph import Graph
from autopar.errors import InfeasiblePlanError
from autopar.planner.decisions import decisions_of
from autopar.planner.diagnosis import check_batch, check_idle, nothing_fits
from autopar.planner.memory import device_overhead
from autopar.planner.mesh import candidate_meshes
from autopar.planner.naming import axis_names
from autopar.planner.operators import PlannedType, planned_types
from autopar.planner.pins import Pins
from autopar.planner.prices import Known, Prices
from autopar.planner.problem import solver_problem
from autopar.planner.realize import Realized, realize
from autopar.planner.space import Keep, Space, search_space
from autopar.planner.step import step_s
from cost_models.cluster import Cluster
from solver import Solution, Status, evaluate, smallest_usage, solve

__all__ = ["Found", "Options", "Tried", "search"]

TIGHTENINGS = 4
"""How often the limit on kept bytes is lowered until the whole peak fits."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asks of the search."""

    pins: Pins = field(default_factory=Pins)
    memory_bytes: int | None = None
    """Limit per device; the device's own capacity where None."""
    time_limit_s: float = 120.0
    """For one mesh."""
    keep: Keep | None = None
    """What the search may choose from, where that is not everything."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One mesh and the best plan on it."""

    realized: Realized
    solution: Solution
    step_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """The chosen plan and what it was chosen from."""

    best: Tried
    runner_ups: tuple[Tried, ...]
    """Best plans of the other meshes, fastest first."""
    misfits: int
    """Meshes on which nothing fits."""
    wall_s: float

    @property
    def lower_bound_s(self) -> float:
        """No plan in the space searched has a smaller objective."""
        return min(tried.solution.lower_bound for tried in (self.best, *self.runner_ups))


@dataclass(frozen=True, slots=True)
class Model:
    """A captured model made ready for any mesh."""

    graph: Graph
    types: Mapping[str, PlannedType]

    @staticmethod
    def of(graph: Graph) -> Model:
        graph = without_biases(graph)
        return Model(graph, planned_types(graph))


def search(graph: Graph, cluster: Cluster, options: Options) -> Found:
    """The fastest plan for ``graph`` on all devices of ``cluster``.

    Raises ``InfeasiblePlanError`` when nothing fits the memory limit, or when no axis divides the work, and
    ``PinError`` when the pins do not suit the cluster.
    """
    start_s = time.perf_counter()
    check_batch(graph, options.pins)
    model = Model.of(graph)
    limit = options.memory_bytes or cluster.device.memory_bytes
    tried: list[Tried] = []
    misfits: list[Tried] = []
    known: dict[tuple[int, ...], Known] = {}
    for axes in candidate_meshes(cluster.devices, options.pins):
        prices = Prices(cluster, axes, known.setdefault(tuple(axis.size for axis in axes), Known()))
        found = _best_on(model, prices, limit, options)
        if found is not None:
            (tried if found.realized.memory.peak <= limit else misfits).append(found)
    tried.sort(key=lambda each: each.step_s)
    tried = [each for each in tried if not _splits_an_axis(each)] or tried
    busy = [each for each in tried if not check_idle(each.realized.sharded, model.types)]
    if not tried:
        raise nothing_fits([each.realized for each in misfits], limit)
    if not busy:
        raise InfeasiblePlanError(check_idle(tried[0].realized.sharded, model.types))
    return Found(busy[0], tuple(busy[1:]), len(misfits), time.perf_counter() - start_s)


def _splits_an_axis(tried: Tried) -> bool:
    """True when two data axes do the same: a mesh with one axis in their place is tried too."""
    roles = [axis.name.removesuffix("_2") for axis in tried.realized.sharded.axes if axis.is_data]
    return len(set(roles)) < len(roles)


def _best_on(model: Model, prices: Prices, limit: int, options: Options) -> Tried | None:
    """The best plan on one mesh; the leanest one where none fits."""
    space = search_space(model.graph, model.types, prices, options.keep)
    allowance = limit - device_overhead(prices.cluster.device, len(prices.axes))
    found = None
    for _ in range(TIGHTENINGS):
        problem = solver_problem(space, float(max(allowance, 0)))
        solution = solve(problem, time_limit_s=options.time_limit_s)
        if solution.choice is None:
            break
        found = _tried(model, space, solution)
        excess = found.realized.memory.peak - limit
        if excess <= 0:
            return found
        # What is not kept (gathered parameters, temporaries) follows from the choice: make room for it.
        kept = evaluate(problem, solution.choice).peak_usage
        allowance = math.floor(min(allowance, kept) - excess)
        if allowance <= 0:
            break
    least_kept = smallest_usage(solver_problem(space), time_limit_s=options.time_limit_s)
    leanest = _tried(model, space, least_kept) if least_kept.choice is not None else None
    unlimited = solve(solver_problem(space), time_limit_s=options.time_limit_s)
    fastest = _tried(model, space, unlimited) if unlimited.choice is not None else None
    all_found = [each for each in (found, leanest, fastest) if each is not None]
    return min(all_found, key=lambda each: each.realized.memory.peak, default=None)


def _tried(model: Model, space: Space, solution: Solution) -> Tried:
    assert solution.choice is not None
    decisions = decisions_of(space.items, solution.choice)
    names = axis_names(model.types, decisions, space.prices.axes)
    realized = realize(model.graph, model.types, names, decisions, space.prices)
    if solution.status is Status.optimal:
        assert math.isclose(realized.objective_s, solution.cost, rel_tol=1e-6), (
            f"the plan costs {realized.objective_s} s, the solver says {solution.cost} s"
        )
    return Tried(realized, solution, step_s(realized, space.prices))
