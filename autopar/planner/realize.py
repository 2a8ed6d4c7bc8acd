"""From decisions alone to layouts, conversions and prices, for a search's plan and for a loaded one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.capture.graph import Graph
from autopar.errors import PlanError
from autopar.planner.decisions import Decisions
from autopar.planner.host import HostTime, host_time
from autopar.planner.memory import (
    OPTIMIZER_BYTES,
    PARAMETER_BYTES,
    Memory,
    device_overhead,
    gathered_bytes,
)
from autopar.planner.operators import PlannedOperator, PlannedType
from autopar.planner.peak import buffer_bytes, peak_of, resting_allocation
from autopar.planner.prices import OperatorPrice, Prices
from autopar.planner.tensors import ParameterGroup, Tensor, parameter_groups
from autopar.shardings.placement import REPLICATE, Layout, format_layout, is_legal
from autopar.shardings.sharded import Conversion, NamedAxis, ShardedGraph, Stage
from autopar.shardings.strategy import Strategy, combined, divides
from cost_models.memory import unsplit_bytes, workspace_bytes

__all__ = ["Realized", "memory_of", "realize"]


@dataclass(frozen=True, slots=True)
class Realized:
    """A sharded graph and what each part of it costs."""

    sharded: ShardedGraph
    operators: dict[tuple[str, str], OperatorPrice]
    """One call of each operator, by (segment type, operator)."""
    upkeep_s: dict[str, float]
    """Data-parallel traffic and optimizer of each parameter group, all its members, by its first name."""
    traffic_s: float
    """The part of it that is data-parallel gathers and sums."""
    operator_s: float
    """All operators of a step."""
    conversion_s: float
    """All conversions of a step."""
    memory: Memory
    """Of every device: they all do the same."""
    host: HostTime = field(default_factory=lambda: HostTime(0.0, 0.0, 0.0))
    """What one process takes to issue a step."""

    @property
    def objective_s(self) -> float:
        """What the search minimises, summed again from the plan."""
        return self.operator_s + self.conversion_s + sum(self.upkeep_s.values())


def realize(
    graph: Graph,
    types: Mapping[str, PlannedType],
    names: tuple[str, ...],
    decisions: Decisions,
    prices: Prices,
) -> Realized:
    """Everything that follows from ``decisions`` on the mesh of ``prices``, whose axes are called ``names``.

    Raises ``PlanError`` naming the operator, parameter or input whose decision is impossible.
    """
    axes = tuple(NamedAxis(name, axis.size, axis.kind) for name, axis in zip(names, prices.axes, strict=True))
    strategies = _strategies(types, names, decisions, prices)
    tensors = prices.tensors(graph, types)
    conversions = tuple(_conversions(tensors, strategies, decisions, prices, names))
    counts = {name: sum(call.type == name for call in graph.calls) for name in types}
    operators = {
        (name, operator.name): prices.operator(
            operator.call,
            strategies[name, operator.name].operands,
            strategies[name, operator.name].results,
            planned,
        )
        for name, planned in types.items()
        for operator in planned.operators
    }
    groups = parameter_groups(graph)
    memory = memory_of(graph, types, strategies, decisions, prices)
    resting = {name: decisions.parameters[group.item.name] for group in groups for name in group.names}
    sharded = ShardedGraph(
        graph,
        axes,
        strategies,
        dict(decisions.boundaries),
        dict(decisions.inputs),
        resting,
        conversions,
        (Stage((0, len(graph.calls) - 1), prices.execution.recompute, prices.execution.zero),),
    )
    return Realized(
        sharded,
        operators,
        {
            g.item.name: len(g.names) * prices.upkeep_s(g.value, decisions.parameters[g.item.name])
            for g in groups
        },
        sum(len(g.names) * prices.traffic_s(g.value, decisions.parameters[g.item.name]) for g in groups),
        prices.execution.microbatches
        * sum(counts[type_name] * price.seconds for (type_name, _), price in operators.items()),
        sum(conversion.seconds for conversion in conversions),
        memory,
        host_time(
            graph,
            types,
            prices,
            parameters=sum(len(group.names) for group in groups if group.value.requires_grad),
            collectives=sum(2 * tensor.count * len(tensor.steps) for tensor in conversions),
        ),
    )


def _strategies(
    types: Mapping[str, PlannedType], names: tuple[str, ...], decisions: Decisions, prices: Prices
) -> dict[tuple[str, str], Strategy]:
    return {
        (type_name, operator.name): _strategy(type_name, operator, names, decisions, prices)
        for type_name, planned in types.items()
        for operator in planned.operators
    }


def _strategy(
    type_name: str, operator: PlannedOperator, names: tuple[str, ...], decisions: Decisions, prices: Prices
) -> Strategy:
    where = f"operator {type_name}.{operator.name} ({operator.call.operator.target})"
    wanted = decisions.strategies.get((type_name, operator.name))
    if wanted is None:
        raise PlanError(f"{where} has no strategy. Restore it or plan again.")
    by_name = {choice.name: choice for choice in operator.choices}
    for axis, name in zip(names, wanted, strict=True):
        if name not in by_name:
            legal = ", ".join(f"'{known}'" for known in by_name)
            raise PlanError(f"{where} cannot do '{name}' on axis {axis}: its choices are {legal}.")
    strategy = combined(operator.call, tuple(by_name[name] for name in wanted))
    if not divides(operator.call, strategy, prices.sizes):
        shapes = ", ".join(f"{value.name} {list(value.shape)}" for value in operator.call.operands)
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(names, prices.sizes, strict=True))
        raise PlanError(
            f"{where} cannot shard {'/'.join(wanted)}: {shapes} do not divide evenly over {sizes}."
        )
    return strategy


def memory_of(
    graph: Graph,
    types: Mapping[str, PlannedType],
    strategies: Mapping[tuple[str, str], Strategy],
    decisions: Decisions,
    prices: Prices,
) -> Memory:
    """Memory of a device that runs all calls of ``graph``, one microbatch of it in flight."""
    tensors, groups = prices.tensors(graph, types), parameter_groups(graph)
    versions = {p: tuple(_wanted(t, strategies, decisions, prices)) for p, t in enumerate(tensors)}
    resting = decisions.parameters
    peak = peak_of(graph, types, tensors, versions, groups, resting, strategies, prices)
    device = prices.cluster.device
    parameters = resting_allocation(groups, resting, prices, PARAMETER_BYTES)
    optimizer = 2 * resting_allocation(groups, resting, prices, OPTIMIZER_BYTES // 2)
    unsplit = unsplit_bytes(parameters + optimizer + peak.total, device)
    return Memory(
        parameters=parameters + buffer_bytes(groups, resting, prices),
        gradients=peak.gradients,
        optimizer=optimizer,
        gathered=_gathered(graph, groups, decisions, prices),
        activations=peak.activations,
        temporaries=peak.temporaries + workspace_bytes(device) + unsplit,
        overhead=device_overhead(device, len(prices.axes)),
        moment=peak.moment,
    )


def _gathered(graph: Graph, groups: tuple[ParameterGroup, ...], decisions: Decisions, prices: Prices) -> int:
    if not any(axis.is_data for axis in prices.axes):
        return 0
    zero = prices.execution.zero if prices.shard_ways > 1 else 3
    return gathered_bytes(graph, groups, decisions.parameters, prices.sizes, zero)


def _wanted(
    tensor: Tensor, strategies: Mapping[tuple[str, str], Strategy], decisions: Decisions, prices: Prices
) -> dict[Layout, None]:
    """The distinct layouts in which a tensor is read."""
    wanted: dict[Layout, None] = {}
    for use in tensor.uses:
        match use.item.kind:
            case "operator":
                wanted[strategies[use.item.type, use.item.name].operands[use.position]] = None
            case "boundary":
                wanted[decisions.boundaries[use.item.type, use.item.name]] = None
            case _:
                wanted[(REPLICATE,) * len(prices.axes)] = None
    return wanted


def _conversions(
    tensors: tuple[Tensor, ...],
    strategies: Mapping[tuple[str, str], Strategy],
    decisions: Decisions,
    prices: Prices,
    names: tuple[str, ...],
) -> list[Conversion]:
    """Every conversion that some consumer needs, once per tensor and layout."""

    def made(tensor: Tensor) -> Layout:
        item = tensor.producer
        match item.kind:
            case "operator":
                return strategies[item.type, item.name].results[tensor.result]
            case "boundary":
                return decisions.boundaries[item.type, item.name]
            case "parameter":
                return decisions.parameters[item.name]
        return decisions.inputs[item.name]

    found = []
    for tensor in tensors:
        wanted = _wanted(tensor, strategies, decisions, prices)
        source = made(tensor)
        for target in wanted:
            if target != source:
                found.append(_conversion(tensor, source, target, prices, names))
    return found


def _conversion(
    tensor: Tensor, source: Layout, target: Layout, prices: Prices, names: tuple[str, ...]
) -> Conversion:
    for layout in (source, target):
        if not is_legal(tensor.value.shape, layout, prices.sizes):
            raise PlanError(
                f"{tensor.producer}: {tensor.value.name} {list(tensor.value.shape)} cannot be laid out as "
                f"{format_layout(layout, names)}: its dims do not divide evenly."
            )
    table = prices.table(tensor.value, frozenset([source, target]), runs_again=tensor.runs_again)
    for layout in (source, target):
        if layout not in table.positions:
            raise PlanError(
                f"{tensor.producer}: {tensor.value.name} has no gradient, so it cannot be laid out as "
                f"{format_layout(layout, names)}: R|P is a sum of gradients over ranks. Write R."
            )
    seconds = float(table.seconds[table.index(source), table.index(target)])
    if seconds == float("inf"):
        raise PlanError(
            f"{tensor.producer}: {tensor.value.name} cannot get from {format_layout(source, names)} to "
            f"{format_layout(target, names)}. Choose strategies that agree."
        )
    steps = tuple(table.path(source, target))
    count = tensor.count * prices.execution.microbatches
    return Conversion(
        tensor.value, tensor.members, source, target, steps, count, count * seconds, tensor.runs_again
    )
