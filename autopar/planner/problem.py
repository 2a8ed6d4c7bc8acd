"""The search space as plain numbers for the solver, and the solver's answer as decisions."""

from __future__ import annotations

from math import inf

import numpy as np

from autopar.planner.operators import PlannedType
from autopar.planner.saved import saved_by
from autopar.planner.space import Candidate, Space
from autopar.planner.tensors import Item, Tensor
from autopar.shardings.placement import Layout, local_shape
from cost_models.dtypes import dtype_bytes
from solver import Fan, Node, Problem

__all__ = ["Decisions", "decisions_of", "kept_versions", "solver_problem"]

Decisions = dict[Item, Candidate]
"""The chosen candidate of every item."""


def solver_problem(space: Space, types: dict[str, PlannedType], limit_bytes: float = inf) -> Problem:
    """Nodes are items, fans are tensors; usage is what a device keeps until the backward, in bytes."""
    position = {item: index for index, item in enumerate(space.items)}
    nodes = tuple(
        Node(
            np.array([candidate.seconds for candidate in candidates]),
            np.array([candidate.kept_bytes for candidate in candidates]),
            name=str(item),
        )
        for item, candidates in space.items.items()
    )
    fans = tuple(_fan(tensor, space, position, types) for tensor in space.tensors if tensor.uses)
    return Problem(nodes, (), fans, limit_bytes)


def _fan(tensor: Tensor, space: Space, position: dict[Item, int], types: dict[str, PlannedType]) -> Fan:
    table = space.prices.table(tensor.value, space.layouts(tensor))
    made = [candidate.results[tensor.result] for candidate in space.items[tensor.producer]]
    wants = [
        [candidate.operands[use.position] for candidate in space.items[use.item]] for use in tensor.uses
    ]
    produced = tuple(dict.fromkeys(made))
    wanted = tuple(dict.fromkeys(layout for layouts in wants for layout in layouts))
    rows, columns = [table.index(layout) for layout in produced], [table.index(layout) for layout in wanted]
    keeps = kept_versions(tensor, types)
    usages = [tensor.count * _bytes(tensor, layout, space) if keeps else 0.0 for layout in wanted]
    return Fan(
        producer=position[tensor.producer],
        consumers=tuple(position[use.item] for use in tensor.uses),
        produced=np.array([produced.index(layout) for layout in made]),
        wanted=tuple(np.array([wanted.index(layout) for layout in layouts]) for layouts in wants),
        costs=tensor.count * table.seconds[np.ix_(rows, columns)],
        usages=np.array(usages),
    )


def kept_versions(tensor: Tensor, types: dict[str, PlannedType]) -> bool:
    """True when autograd keeps the versions of a tensor that its consumers read. Parameters are kept anyway."""
    if tensor.producer.kind == "parameter":
        return False
    for use in tensor.uses:
        if use.item.kind == "operator":
            operators = {operator.name: operator for operator in types[use.item.type].operators}
            if use.position in saved_by(operators[use.item.name].call).operands:
                return True
    return False


def _bytes(tensor: Tensor, layout: Layout, space: Space) -> float:
    shape = local_shape(tensor.value.shape, layout, space.prices.sizes)
    size = dtype_bytes(tensor.value.dtype)
    for length in shape:
        size *= length
    return float(size)


def decisions_of(space: Space, choice: tuple[int, ...]) -> Decisions:
    """The chosen candidates by item."""
    return {item: candidates[index] for (item, candidates), index in zip(space.items.items(), choice, strict=True)}
