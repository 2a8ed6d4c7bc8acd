"""Why there is no plan, with the numbers and what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from autopar.capture.graph import Graph
from autopar.errors import InfeasiblePlanError, PinError
from autopar.planner.executions import microbatch_counts
from autopar.planner.labels import is_sequence
from autopar.planner.memory import Memory
from autopar.planner.mesh import MeshAxis
from autopar.planner.operators import PlannedType
from autopar.planner.pins import Pins
from autopar.planner.roles import does_main_work
from autopar.shardings.sharded import ShardedGraph

__all__ = ["check_batch", "check_idle", "check_microbatch", "nothing_fits"]

GB = 10**9


def check_batch(graph: Graph, pins: Pins) -> None:
    """Raise ``InfeasiblePlanError`` unless pinned data axes divide the batch, context axes the sequence."""
    ways = {
        "batch": prod(pins.sizes.get(role, 1) for role in ("dp_replicate", "dp_shard")),
        "sequence": pins.sizes.get("cp", 1),
    }
    for (what, needed), sizes in zip(ways.items(), _batch_and_sequence(graph), strict=True):
        for size in sizes:
            if size % needed:
                legal = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
                raise InfeasiblePlanError(
                    f"the {what} of {size} does not divide over {needed} ranks ({pins}). "
                    f"Legal sizes of these axes together are {legal}; or use a {what} that is a multiple of "
                    f"{needed}."
                )


def check_microbatch(meshes: Sequence[tuple[MeshAxis, ...]], pins: Pins, batch: int) -> None:
    """Raise ``PinError`` unless the pinned microbatch divides the batch of a data rank on some mesh."""
    if pins.microbatch is None or any(microbatch_counts(axes, pins, batch) for axes in meshes):
        return
    ways = prod(pins.sizes.get(role, 1) for role in ("dp_replicate", "dp_shard"))
    legal = ", ".join(str(n) for n in range(1, batch // ways + 1) if batch // ways % n == 0)
    raise PinError(
        f"pin microbatch={pins.microbatch}: {ways} data ranks take {batch // ways} of the {batch} sequences each. "
        f"Legal microbatches are {legal}."
    )


def _batch_and_sequence(graph: Graph) -> tuple[set[int], set[int]]:
    """Sizes of the batch and of the sequence among the inputs; images, for one, show no sequence."""
    values = [i.value for i in graph.inputs if i.value.shape]
    batches = {value.shape[0] for value in values if value.dtype.startswith("int")}
    sequences = {value.shape[1] for value in values if is_sequence(value)}
    return batches or {value.shape[0] for value in values}, sequences


def check_idle(sharded: ShardedGraph, types: Mapping[str, PlannedType]) -> str:
    """Which axis has nothing to do, in words; empty when all work."""
    for position, axis in enumerate(sharded.axes):
        works = any(
            sharded.strategies[name, operator.name].factors[position]
            for name, planned in types.items()
            for operator in planned.operators
            if does_main_work(operator)
        )
        if not works:
            batch = next((i.value.shape[0] for i in sharded.graph.inputs if i.value.shape), 1)
            ranks = prod(sharded.sizes)
            legal = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
            return (
                f"no axis of {axis.size} ranks divides the batch of {batch} or any other dim of the model's "
                f"matrix products: {ranks} devices would repeat each other's work. Use a batch that is a "
                f"multiple of {axis.size}, or one of {legal} devices."
            )
    return ""


def nothing_fits(found: Sequence[tuple[ShardedGraph, Memory]], limit_bytes: int) -> InfeasiblePlanError:
    """The smallest plan found, what holds its memory, and what would help."""
    if not found:
        return InfeasiblePlanError("no strategy fits together on any mesh of this cluster: relax the pins.")
    sharded, memory = min(found, key=lambda each: each[1].peak)
    categories = {
        "parameters, gradients and optimizer state": memory.parameters + memory.gradients + memory.optimizer,
        "parameters gathered for use": memory.gathered,
        "activations kept for the backward": memory.activations,
        "temporaries of one operator": memory.temporaries,
        "context and communication buffers": memory.overhead,
    }
    worst = max(categories, key=lambda name: categories[name])
    stages = [f"pp {sharded.stage_ranks}"] if sharded.stage_ranks > 1 else []
    mesh = " × ".join([*stages, *(f"{axis.name} {axis.size}" for axis in sharded.axes)]) or "one device"
    return InfeasiblePlanError(
        f"no plan fits {_size(limit_bytes)} per device: the smallest found needs {_size(memory.peak)} "
        f"({mesh}; {worst} alone hold {_size(categories[worst])}). "
        "Use a smaller batch or sequence, more devices, or devices with more memory."
    )


def _size(count: float) -> str:
    if count >= GB / 10:
        return f"{count / GB:.1f} GB"
    return f"{count / 10**6:.1f} MB" if count >= 10**5 else f"{count / 1000:.1f} kB"
