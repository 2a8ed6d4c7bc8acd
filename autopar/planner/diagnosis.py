"""Why there is no plan, with the numbers and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from autopar.capture.graph import Graph
from autopar.errors import AutoparError, InfeasiblePlanError, PinError
from autopar.planner.labels import is_sequence
from autopar.planner.memory import Memory
from autopar.planner.microbatches import Cut
from autopar.planner.operators import PlannedType
from autopar.planner.pins import Pins
from autopar.planner.roles import does_main_work, weight_dims
from autopar.planner.splits import divisors
from autopar.shardings.sharded import NamedAxis, ShardedGraph

__all__ = ["idle_axis", "nothing_as_pinned", "nothing_fits", "nothing_to_do", "sequences_of"]

GB = 10**9


def sequences_of(graph: Graph) -> tuple[int, ...]:
    """Lengths of the sequences among the inputs; images, for one, show none."""
    return tuple(sorted({i.value.shape[1] for i in graph.inputs if i.value.shape and is_sequence(i.value)}))


def idle_axis(sharded: ShardedGraph, types: Mapping[str, PlannedType]) -> NamedAxis | None:
    """The axis along which devices only repeat each other's main work, if there is one."""
    for position, axis in enumerate(sharded.axes):
        works = any(
            sharded.strategies[name, operator.name].factors[position]
            for name, planned in types.items()
            for operator in planned.operators
            if does_main_work(operator)
        )
        if not works:
            return axis
    return None


def nothing_to_do(
    axis: NamedAxis, graph: Graph, types: Mapping[str, PlannedType], pins: Pins, devices: int
) -> AutoparError:
    """Why an axis has nothing to do, and what would give it something."""
    work = "cuts the sequence" if axis.name == "cp" else "cuts the weights of matrix products"
    if axis.name in pins.sizes and axis.name in ("cp", "tp"):
        dims = {"cp": sequences_of(graph), "tp": weight_dims(types)}[axis.name]
        found = f"those of {graph.name} have dims of {_listed(dims)}" if dims else f"{graph.name} has none"
        return PinError(
            f"pin {axis.name}={axis.size} {work}, but {found}: no matrix product or attention divides so over "
            f"{axis.size} ranks. Pin another size, or leave {axis.name} out."
        )
    if not any(does_main_work(operator) for planned in types.values() for operator in planned.operators):
        return InfeasiblePlanError(
            f"{graph.name} has neither matrix products with weights nor attention: there is no work to share out over "
            f"{devices} devices. Use one device."
        )
    batch = next((i.value.shape[0] for i in graph.inputs if i.value.shape), 1)
    return InfeasiblePlanError(
        f"no axis of {axis.size} ranks divides the batch of {batch} or any other dim of the model's "
        f"matrix products: {devices} devices would repeat each other's work. Use a batch that is a "
        f"multiple of {axis.size}, or one of {_listed(divisors(batch))} devices."
    )


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def nothing_as_pinned(pins: Pins, batch: int, cuts: Mapping[int, Cut]) -> AutoparError:
    """Why no plan does what is pinned, although no two pins contradict each other.

    ``cuts`` says why the batch cannot be cut into so many microbatches.
    """
    if not pins.items:
        return InfeasiblePlanError(
            "no strategy fits together on any mesh of this cluster. Use fewer devices."
        )
    if not cuts:
        return PinError(f"no plan does all of {pins} for this model: leave one of these pins out.")
    count = min(cuts)
    blamed = [key for key in ("pp", "schedule", "chunks", "microbatch") if key in pins.items]
    whole = batch // prod(pins.sizes.get(role, 1) for role in ("dp_replicate", "dp_shard"))
    turns = f"pin microbatch={whole}, so that the pipeline's ranks take turns with it whole, "
    return PinError(
        f"as pinned ({pins}) the batch of {batch} must be cut, but it cannot be cut into {count} microbatches: "
        f"{cuts[count].reason}. Leave out {' and '.join(blamed) or 'the pins'}, "
        f"{turns if pins.needs_stages and pins.microbatch is None else ''}"
        "or change that line so that every sequence counts for itself."
    )


def nothing_fits(
    found: Sequence[tuple[ShardedGraph, Memory]], limit_bytes: int, cuts: Mapping[int, Cut]
) -> InfeasiblePlanError:
    """The smallest plan found, what holds its memory, and what would help."""
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
        + (f" (The batch was not cut into microbatches: {cuts[min(cuts)].reason}.)" if cuts else "")
    )


def _size(count: float) -> str:
    if count >= GB / 10:
        return f"{count / GB:.1f} GB"
    return f"{count / 10**6:.1f} MB" if count >= 10**5 else f"{count / 1000:.1f} kB"
