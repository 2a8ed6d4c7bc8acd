"""What a role lets an axis do: pins and parameter management as a filter on the choices of one operator."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.planner.labels import BATCH, SEQUENCE, Labels, label_of_choice
from autopar.planner.mesh import MeshAxis
from autopar.planner.operators import PlannedOperator, PlannedType
from autopar.planner.work import family_of
from autopar.shardings.placement import is_legal
from autopar.shardings.strategy import AxisChoice

__all__ = ["allowed_choices", "does_main_work", "weight_dims"]

_LABEL_OF_ROLE = {"dp_replicate": BATCH, "dp_shard": BATCH, "cp": SEQUENCE}


def allowed_choices(
    operator: PlannedOperator, axis: MeshAxis, labels: Labels, *, is_repeated: bool = False
) -> tuple[AxisChoice, ...]:
    """The choices that one axis may make for one operator, given its size, kind and pinned role.

    In repeated blocks data axes cut the batch wherever there is one; outside them they may leave small things whole.
    """
    fitting = tuple(choice for choice in operator.choices if _divides(operator, choice, axis))
    if axis.is_data:
        fitting = tuple(choice for choice in fitting if not _shards_parameter(operator, choice))
    if axis.role == "tp":
        fitting = _tensor_parallel(operator, fitting, labels)
    elif axis.role in _LABEL_OF_ROLE:
        fitting = _must_shard(operator, fitting, labels, _LABEL_OF_ROLE[axis.role])
    elif axis.label == BATCH and is_repeated:
        fitting = _must_shard(operator, fitting, labels, BATCH)
    elif axis.label:
        fitting = _may_shard(operator, fitting, labels, axis.label)
    return _without_idling(operator, fitting)


def does_main_work(operator: PlannedOperator) -> bool:
    """True for products with a weight, and attention: what the devices are there for."""
    family = family_of(operator.call)
    return family == "attention" or (family == "matmul" and bool(operator.parameters))


def weight_dims(types: Mapping[str, PlannedType]) -> tuple[int, ...]:
    """Sizes of the weights of matrix products: what tensor ranks may cut, ascending."""
    sizes = {
        size
        for planned in types.values()
        for operator in planned.operators
        if does_main_work(operator)
        for place in operator.parameters
        for size in operator.call.operands[place].shape
    }
    return tuple(sorted(sizes))


def _without_idling(operator: PlannedOperator, choices: tuple[AxisChoice, ...]) -> tuple[AxisChoice, ...]:
    """No device repeats another's main work where it could do its share."""
    sharding = tuple(choice for choice in choices if choice.factor)
    return sharding if sharding and does_main_work(operator) else choices


def _divides(operator: PlannedOperator, choice: AxisChoice, axis: MeshAxis) -> bool:
    values = (*operator.call.operands, *operator.call.results)
    return all(
        value is None or not placement.is_shard or is_legal(value.shape, (placement,), (axis.size,))
        for value, placement in zip(values, (*choice.operands, *choice.results), strict=True)
    )


def _shards_parameter(operator: PlannedOperator, choice: AxisChoice) -> bool:
    return any(choice.operands[place].is_shard for place in operator.parameters)


def _must_shard(
    operator: PlannedOperator, choices: tuple[AxisChoice, ...], labels: Labels, wanted: str
) -> tuple[AxisChoice, ...]:
    """Shard the role's own dim wherever there is one; elsewhere shard nothing."""
    named = [(choice, label_of_choice(operator.call, choice, labels)) for choice in choices]
    sharding = tuple(choice for choice, label in named if label == wanted)
    return sharding or tuple(choice for choice in choices if not choice.factor)


def _may_shard(
    operator: PlannedOperator, choices: tuple[AxisChoice, ...], labels: Labels, wanted: str
) -> tuple[AxisChoice, ...]:
    """Shard one kind of dim, or nothing."""
    return tuple(
        choice
        for choice in choices
        if not choice.factor or label_of_choice(operator.call, choice, labels) == wanted
    )


def _tensor_parallel(
    operator: PlannedOperator, choices: tuple[AxisChoice, ...], labels: Labels
) -> tuple[AxisChoice, ...]:
    """Never the batch; and products with a weight shard that weight wherever its sizes allow."""
    choices = tuple(choice for choice in choices if label_of_choice(operator.call, choice, labels) != BATCH)
    if family_of(operator.call) != "matmul":
        return choices
    sharding = tuple(choice for choice in choices if _shards_parameter(operator, choice))
    return sharding or choices
