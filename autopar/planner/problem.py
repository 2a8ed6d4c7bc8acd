"""The search space as plain numbers for the solver: nodes are items, fans tensors, usage kept bytes."""

from __future__ import annotations

from math import inf

import numpy as np

from autopar.planner.memory import value_bytes
from autopar.planner.space import Space
from autopar.planner.tensors import Item, Tensor
from solver import Fan, Node, Problem

__all__ = ["solver_problem"]


def solver_problem(space: Space, limit_bytes: float = inf) -> Problem:
    """Minimise seconds; what a device keeps until the backward must stay below ``limit_bytes``.

    In a pipeline a device holds its share of the layers, the first stage as many microbatches as there are stages.
    """
    execution = space.prices.execution
    held = 1.0 / execution.stage_ranks
    kept = held * min(execution.stage_ranks, execution.microbatches)
    position = {item: index for index, item in enumerate(space.items)}
    nodes = tuple(
        Node(
            np.array([candidate.seconds for candidate in candidates]),
            (held if item.kind == "parameter" else kept)
            * np.array([candidate.kept_bytes for candidate in candidates]),
            name=str(item),
        )
        for item, candidates in space.items.items()
    )
    fans = tuple(_fan(tensor, space, position, kept) for tensor in space.tensors if tensor.uses)
    return Problem(nodes, (), fans, limit_bytes)


def _fan(tensor: Tensor, space: Space, position: dict[Item, int], share: float) -> Fan:
    table = space.prices.table(tensor.value, space.layouts(tensor), runs_again=tensor.runs_again)
    made = [candidate.results[tensor.result] for candidate in space.items[tensor.producer]]
    wants = [[candidate.operands[use.position] for candidate in space.items[use.item]] for use in tensor.uses]
    produced = {layout: index for index, layout in enumerate(dict.fromkeys(made))}
    wanted = {
        layout: index for index, layout in enumerate(dict.fromkeys(w for layouts in wants for w in layouts))
    }
    rows, columns = [table.index(layout) for layout in produced], [table.index(layout) for layout in wanted]
    kept = share * tensor.kept_count
    sizes = space.prices.sizes
    return Fan(
        producer=position[tensor.producer],
        consumers=tuple(position[use.item] for use in tensor.uses),
        produced=np.array([produced[layout] for layout in made]),
        wanted=tuple(np.array([wanted[layout] for layout in layouts]) for layouts in wants),
        costs=tensor.count * space.prices.execution.microbatches * table.seconds[np.ix_(rows, columns)],
        usages=np.array([float(kept * value_bytes(tensor.value, layout, sizes)) for layout in wanted]),
    )
