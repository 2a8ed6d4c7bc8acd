"""A plan's decisions made real again: what `emit`, `run` and `parallelize(plan=…)` start from."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from autopar.capture.graph import Graph
from autopar.errors import PlanError
from autopar.plan.graphs import graph_of
from autopar.plan.schema import Plan
from autopar.planner.assemble import conversion_entries, predicted_entry, segment_entries
from autopar.planner.decisions import Decisions
from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.mesh import MeshAxis
from autopar.planner.operators import planned_types
from autopar.planner.plan_checks import STAGE, check_decisions
from autopar.planner.prices import Prices
from autopar.planner.realize import Realized, realize
from autopar.planner.saved import saved_by
from autopar.planner.staging import Staged, Staging
from autopar.planner.step import step_s
from autopar.planner.tensors import parameter_groups, resting_placement
from autopar.shardings.calls import Call
from autopar.shardings.placement import REPLICATE, Layout, parse_layout
from autopar.shardings.rules import loops_of
from autopar.shardings.sharded import Stage
from cost_models.cluster import Cluster

__all__ = ["restore"]


def restore(plan: Plan, cluster: Cluster) -> tuple[Plan, Realized]:
    """The sharded graph of a plan, and the plan with every derived figure as it follows from its decisions.

    Raises ``PlanError`` naming the operator, parameter or segment whose decision is impossible.
    """
    graph = graph_of(plan)
    check_decisions(plan, cluster)
    _check_operators(graph)
    axes = _axes(plan)
    names = tuple(axis.axis for axis in plan.mesh if axis.parameters != STAGE)
    prices = Prices(cluster, axes, execution=_execution(plan))
    decisions = _decisions(plan, graph, names, axes)
    types = planned_types(graph)
    realized = realize(graph, types, names, decisions, prices)
    outcome: Staged | float = step_s(realized, prices)
    if prices.execution.stage_ranks > 1:
        staged = _staged(plan, Staging(graph, types, names, decisions, prices, RECOMPUTE_LEVELS))
        sharded = replace(
            realized.sharded,
            stages=staged.stages,
            schedule=staged.schedule,
            stage_ranks=prices.execution.stage_ranks,
        )
        realized, outcome = replace(realized, sharded=sharded), staged
    updated = msgspec.structs.replace(
        plan,
        predicted=predicted_entry(realized, outcome, plan.training, plan.model.flops, cluster),
        segments=segment_entries(realized),
        conversions=conversion_entries(realized),
    )
    return updated, realized


def _check_operators(graph: Graph) -> None:
    """Every call is one that its rule can read: a plan's operators are data, and may be damaged."""
    for segment in graph.types:
        for operator in segment.operators:
            try:
                call = Call(operator, segment.values)
                loops_of(call)
                saved_by(call)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                raise PlanError(
                    f"operator {segment.name}.{operator.name} ({operator.target}) is not called as it should "
                    f"be: {type(error).__name__}: {error}. Restore its arguments or plan again."
                ) from error


def _execution(plan: Plan) -> Execution:
    ranks = next((entry.size for entry in plan.mesh if entry.parameters == STAGE), 1)
    first = plan.stages[0]
    level = min((stage.recompute for stage in plan.stages), key=RECOMPUTE_LEVELS.index)
    return Execution(plan.training.compile, level, plan.schedule.microbatches, first.zero, ranks)


def _staged(plan: Plan, staging: Staging) -> Staged:
    """The plan's own stages."""
    stages, first = [], 0
    for entry in plan.stages:
        stages.append(Stage((first, first + len(entry.segments) - 1), entry.recompute, entry.zero))
        first += len(entry.segments)
    return staging.staged(tuple(stages), plan.schedule.name)


def _axes(plan: Plan) -> tuple[MeshAxis, ...]:
    return tuple(MeshAxis(entry.size, entry.parameters) for entry in plan.mesh if entry.parameters != STAGE)


def _layout(where: str, text: str, axes: tuple[str, ...]) -> Layout:
    try:
        return parse_layout(text, axes)
    except ValueError as error:
        raise PlanError(f"{where}: {error}.") from error


def _decisions(plan: Plan, graph: Graph, names: tuple[str, ...], axes: tuple[MeshAxis, ...]) -> Decisions:
    decisions = Decisions({}, {}, {}, {})
    for segment in plan.segments:
        for operator in segment.operators:
            strategy = _read_strategy(f"{segment.name}.{operator.name}", operator.strategy, names)
            decisions.strategies[segment.name, operator.name] = strategy
        for name in segment.inputs:
            if name not in segment.boundaries:
                raise PlanError(
                    f"segment {segment.name} has no layout for its input '{name}' under boundaries."
                )
            where = f"input {segment.name}.{name}"
            decisions.boundaries[segment.name, name] = _layout(where, segment.boundaries[name], names)
    for entry in plan.inputs:
        layout = _layout(f"input {entry.name}", entry.layout, names)
        if not all(placement == REPLICATE or placement.is_shard for placement in layout):
            raise PlanError(
                f"input {entry.name}: '{entry.layout}' is no way to read it; legal are S(dim) and R."
            )
        decisions.inputs[entry.name] = layout
    decisions.parameters.update(_resting(plan, graph, names, axes))
    return decisions


def _resting(
    plan: Plan, graph: Graph, names: tuple[str, ...], axes: tuple[MeshAxis, ...]
) -> dict[str, Layout]:
    """Layouts at rest by first name of each group; along data axes the engine decides."""
    entries = {entry.name: entry for entry in plan.parameters}
    found = {}
    for group in parameter_groups(graph):
        written = {name: entries[name].layout for name in group.names if name in entries}
        if len(written) != len(group.names):
            missing = next(name for name in group.names if name not in written)
            raise PlanError(f"parameter {missing} is used but has no entry under parameters.")
        if len(set(written.values())) > 1:
            other = next(name for name in group.names if written[name] != written[group.item.name])
            raise PlanError(
                f"parameter {other} rests as '{written[other]}', {group.item.name} as "
                f"'{written[group.item.name]}': the same weight of repeated blocks rests alike. "
                "Change them together."
            )
        whole = resting_placement(group.value)
        layout = _layout(f"parameter {group.item.name}", written[group.item.name], names)
        _check_engine(group.item.name, layout, axes, names)
        found[group.item.name] = tuple(
            whole if axis.is_data else placement for axis, placement in zip(axes, layout, strict=True)
        )
    return found


def _check_engine(name: str, layout: Layout, axes: tuple[MeshAxis, ...], names: tuple[str, ...]) -> None:
    for axis, placement, axis_name in zip(axes, layout, names, strict=True):
        if axis.is_data and placement.is_shard:
            raise PlanError(
                f"parameter {name} rests as {axis_name}:{placement}, but the mesh says how parameters rest along "
                f"{axis_name}: '{axis.kind}'. Leave that axis out of its layout."
            )


def _read_strategy(where: str, text: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    chosen = {}
    for item in text.split():
        axis, separator, name = item.partition(":")
        if not separator or axis not in axes:
            raise PlanError(
                f"operator {where}: strategy '{text}' names the axis '{axis}'; "
                f"the mesh has {', '.join(axes) or 'none'}."
            )
        factor, blocked, blocks = name.rpartition("x")
        chosen[axis] = f"{factor} x{blocks}" if blocked and blocks.isdigit() and factor else name
    return tuple(chosen.get(axis, "-") for axis in axes)
