"""The strategies that one operator could have, each priced with everything else as the plan decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autopar.errors import PlanError
from autopar.planner.decisions import Decisions
from autopar.planner.operators import PlannedOperator
from autopar.planner.realize import Realized, realize
from autopar.planner.roles import allowed_choices
from autopar.planner.tensors import parameter_groups
from autopar.report.anatomy import Anatomy
from autopar.shardings.strategy import Strategy, strategies

__all__ = ["PricedCandidate", "priced_candidates"]


@dataclass(frozen=True, slots=True)
class PricedCandidate:
    """One strategy of one operator, in seconds of a whole step."""

    names: tuple[str, ...]
    """The choice on each axis."""
    roles: tuple[str, ...]
    """What it does on each axis: keys of ``ROLES``."""
    operator_s: float
    """The operator itself, all its calls."""
    conversion_s: float
    """Bringing its operands and results from and into the layouts of its neighbours."""
    step_change_s: float
    """How much longer the objective gets than the plan's."""
    is_chosen: bool


def priced_candidates(opened: Anatomy, type_name: str, name: str) -> tuple[PricedCandidate, ...]:
    """Every strategy that the search could give an operator, cheapest first.

    Its neighbours keep their strategies; its own weights rest as it wants them. Strategies to which no
    conversion leads are left out. Raises KeyError for an operator that the plan does not have.
    """
    operator = opened.operator(type_name, name)
    labels = opened.types[type_name].labels
    choices = tuple(allowed_choices(operator, axis, labels) for axis in opened.prices.axes)
    found = []
    for strategy in strategies(operator.call, choices, opened.prices.sizes):
        candidate = _priced(opened, type_name, operator, strategy)
        if candidate is not None:
            found.append(candidate)
    return tuple(sorted(found, key=lambda each: (each.step_change_s, not each.is_chosen)))


def _priced(
    opened: Anatomy, type_name: str, operator: PlannedOperator, strategy: Strategy
) -> PricedCandidate | None:
    decisions = _with_strategy(opened, type_name, operator, strategy)
    sharded = opened.sharded
    try:
        realized = realize(sharded.graph, opened.types, sharded.axis_names, decisions, opened.prices)
    except PlanError:
        return None
    price = realized.operators[type_name, operator.name]
    chosen = sharded.strategies[type_name, operator.name]
    return PricedCandidate(
        names=strategy.names,
        roles=tuple(opened.role(type_name, operator, name) for name in strategy.names),
        operator_s=opened.counts[type_name] * price.seconds,
        conversion_s=_own_conversions_s(realized, type_name, operator),
        step_change_s=realized.objective_s - opened.realized.objective_s,
        is_chosen=(strategy.operands, strategy.results) == (chosen.operands, chosen.results),
    )


def _with_strategy(
    opened: Anatomy, type_name: str, operator: PlannedOperator, strategy: Strategy
) -> Decisions:
    """The plan's decisions with one strategy replaced, and the weights that only it uses laid out for it."""
    sharded = opened.sharded
    resting = {}
    for group in parameter_groups(sharded.graph):
        layout = sharded.parameters[group.names[0]]
        users = [
            (segment, each.name, place)
            for segment, value in group.places
            for each in opened.types[segment].operators
            for place, operand in enumerate(each.call.operands)
            if operand.name == value
        ]
        if len(users) == 1 and users[0][:2] == (type_name, operator.name):
            wanted = strategy.operands[users[0][2]]
            axes = opened.prices.axes
            layout = tuple(
                old if axis.is_data or not new.is_shard else new
                for axis, old, new in zip(axes, layout, wanted, strict=True)
            )
        resting[group.item.name] = layout
    names = {key: each.names for key, each in sharded.strategies.items()}
    return replace(
        Decisions(names, dict(sharded.boundaries), resting, dict(sharded.inputs)),
        strategies={**names, (type_name, operator.name): strategy.names},
    )


def _own_conversions_s(realized: Realized, type_name: str, operator: PlannedOperator) -> float:
    touched = {(type_name, value.name) for value in operator.call.operands}
    touched |= {(type_name, name) for name in operator.call.operator.results if name is not None}
    return sum(each.seconds for each in realized.sharded.conversions if touched & set(each.members))
