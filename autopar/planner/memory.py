"""Peak memory of one device under a plan, by category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from autopar.capture.graph import Graph, Value
from autopar.planner.kept import Kept
from autopar.planner.operators import PlannedOperator
from autopar.planner.tensors import ParameterGroup
from autopar.shardings.placement import Layout, local_shape
from autopar.shardings.strategy import Strategy
from cost_models.device import Device
from cost_models.dtypes import dtype_bytes
from cost_models.memory import overhead_bytes

__all__ = [
    "Memory",
    "device_overhead",
    "gathered_bytes",
    "kept_by_operator",
    "resting_bytes",
    "value_bytes",
]

PARAMETER_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 4, 8
"""Bytes per parameter in float32 with AdamW."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held by one device at the fullest moment of a step."""

    parameters: int
    gradients: int
    """Of parameters whose backward is over at that moment."""
    optimizer: int
    gathered: int
    """Parameters gathered for use, and their gradients before they are scattered again."""
    activations: int
    """Kept from the forward for the backward."""
    temporaries: int
    """The rest of what the backward of that moment works on, and the libraries' workspaces."""
    overhead: int
    """Context and communication buffers: what torch's allocator does not hand out."""
    moment: str = ""
    """The segment type whose backward runs, or ``optimizer``."""

    @property
    def peak(self) -> int:
        """Everything that the device must have room for."""
        return self.allocated + self.overhead

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` shows."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.gathered
            + self.activations
            + self.temporaries
        )


def value_bytes(value: Value, layout: Layout, sizes: tuple[int, ...]) -> int:
    """Bytes of one rank's piece."""
    return prod(local_shape(value.shape, layout, sizes)) * dtype_bytes(value.dtype)


def resting_bytes(value: Value, layout: Layout, sizes: tuple[int, ...], shard_ways: int) -> float:
    """Parameter, gradient and optimizer state of one parameter; a buffer is itself."""
    if not value.requires_grad:
        return float(value_bytes(value, layout, sizes))
    elements = prod(local_shape(value.shape, layout, sizes))
    return (PARAMETER_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES) * elements / shard_ways


def kept_by_operator(
    operator: PlannedOperator, strategy: Strategy, sizes: tuple[int, ...], kept: Kept
) -> float:
    """What an operator keeps beside tensors that others read: statistics, masks, log-probabilities."""
    place = kept.place_of(operator.name)
    saved = kept.saved[place]
    if not operator.call.operands or not kept.keeps_statistics(place):
        return 0.0
    shape = local_shape(operator.call.operands[0].shape, strategy.operands[0], sizes)
    return prod(shape) * saved.extra_bytes_per_element + prod(shape[:-1]) * saved.bytes_per_row


def gathered_bytes(
    graph: Graph,
    groups: tuple[ParameterGroup, ...],
    resting: Mapping[str, Layout],
    sizes: tuple[int, ...],
    zero: int = 3,
) -> int:
    """Working set of the data-parallel engine.

    At level 3 the root's parameters, two blocks and one block's gradients; below, all parameters and one
    block's gradients (2) or all gradients in float32 (1).
    """
    block_types = {call.type for call in graph.calls if call.module}
    root, by_type = 0, dict.fromkeys(block_types, 0)
    for group in groups:
        size = value_bytes(group.value, resting[group.item.name], sizes)
        owners = {type_name for type_name, _ in group.places}
        if owners <= block_types and len(owners) == 1:
            by_type[owners.pop()] += size
        else:
            root += size * len(group.names)
    largest = max(by_type.values(), default=0)
    if zero == 3:
        return 2 * root + 3 * largest
    trained = [group for group in groups if group.value.requires_grad]
    whole = sum(len(g.names) * value_bytes(g.value, resting[g.item.name], sizes) for g in trained)
    if zero == 2:
        return whole + largest
    gradients = sum(
        len(g.names) * prod(local_shape(g.value.shape, resting[g.item.name], sizes)) * GRADIENT_BYTES
        for g in trained
    )
    return whole + gradients


def communicators(axis_count: int) -> int:
    """Process groups that the program opens: one an axis, and one for the data axes together."""
    return axis_count + 1 if axis_count else 0


def device_overhead(device: Device, axis_count: int) -> int:
    return overhead_bytes(device, communicators(axis_count))
