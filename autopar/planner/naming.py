"""Axes named after what the chosen strategies do: ``tp``, ``cp``, ``dp_shard``, ``dp_replicate``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from autopar.planner.decisions import Decisions
from autopar.planner.labels import BATCH, SEQUENCE, label_of_choice
from autopar.planner.mesh import MODEL, SHARD, MeshAxis
from autopar.planner.operators import PlannedType
from autopar.planner.roles import does_main_work

__all__ = ["axis_names"]


def axis_names(
    types: Mapping[str, PlannedType], decisions: Decisions, axes: tuple[MeshAxis, ...]
) -> tuple[str, ...]:
    """One name per axis: its pinned role, or what most of the main work does along it."""
    names: list[str] = []
    for position, axis in enumerate(axes):
        name = axis.role or _found_role(types, decisions, position, axis)
        names.append(
            name if name not in names else f"{name}_{1 + sum(n.split('_2')[0] == name for n in names)}"
        )
    return tuple(names)


def _found_role(types: Mapping[str, PlannedType], decisions: Decisions, position: int, axis: MeshAxis) -> str:
    votes: Counter[str] = Counter()
    for name, planned in types.items():
        for operator in planned.operators:
            if not does_main_work(operator):
                continue
            chosen = decisions.strategies[name, operator.name][position]
            choice = next(choice for choice in operator.choices if choice.name == chosen)
            if any(choice.operands[place].is_shard for place in operator.parameters):
                votes["tensor"] += 1
            else:
                votes[label_of_choice(operator.call, choice, planned.labels)] += 1
    if axis.kind == MODEL and votes["tensor"]:
        return "tp"
    if votes[SEQUENCE] > votes[BATCH]:
        return "cp"
    return "dp_shard" if axis.kind == SHARD else "dp_replicate"
