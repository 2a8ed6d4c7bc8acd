"""The search space as plain numbers for the solver: nodes are items, fans tensors, usage kept bytes."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np

from autopar.planner.execution import Execution
from autopar.planner.memory import value_bytes
from autopar.planner.space import Space
from autopar.planner.tensors import Item, Tensor
from solver import Fan, Node, Problem

__all__ = ["priced", "solver_problem"]


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


def priced(problem: Problem, memory_share: float, execution: Execution, memory_bytes: int) -> Problem:
    """The problem with usage as a part of the cost, so that leaner strategies win although they are a little slower.

    A device's whole memory, ``memory_bytes``, costs ``memory_share`` of what all operators take at their fastest.
    """
    fastest_s = float(sum(node.costs.min() for node in problem.nodes))
    # Usage is what a stage holds, compute that of all stages.
    price = memory_share * _stages_held(execution) * fastest_s / memory_bytes
    return Problem(
        nodes=tuple(
            replace(node, costs=node.costs + price * node.usages, usages=np.zeros_like(node.usages))
            for node in problem.nodes
        ),
        edges=problem.edges,
        fans=tuple(
            replace(fan, costs=fan.costs + price * fan.usages[None, :], usages=np.zeros_like(fan.usages))
            for fan in problem.fans
        ),
    )


def _stages_held(execution: Execution) -> float:
    """Stages over the microbatches that the first one holds: what makes its usage that of a whole model."""
    return execution.stage_ranks / min(execution.stage_ranks, execution.microbatches)
