"""What one device sends in a step: along each axis, by each collective and from stage to stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from autopar.planner.mesh import REPLICATE, SHARD
from autopar.planner.prices import MASTER_BYTES
from autopar.report.anatomy import Anatomy
from autopar.report.communication import SILENT, hops
from autopar.report.step_units import parameters_by_rank
from autopar.report.step_wires import wire_bytes
from autopar.shardings.placement import local_shape
from cost_models.dtypes import dtype_bytes

__all__ = ["PIPELINE", "SEND", "Sent", "sent_by_device"]

PIPELINE = "pp"
"""The axis of stages."""
SEND = "send"
"""From a stage to a neighbour: activations there, gradients back."""

_RING_TIMES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
"""Times (n − 1)/n of the whole tensor that each of n ranks sends in a ring."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a device sends in a step along one axis, in one way."""

    axis: str
    kind: str
    """A collective, or ``SEND``."""
    size_bytes: float
    """The mean of all devices."""


def sent_by_device(opened: Anatomy) -> tuple[Sent, ...]:
    """Everything, by axis and kind, the most first, as rings put it on the wire (Thakur et al., 2005)."""
    sent: Counter[tuple[str, str]] = Counter()
    for axis, kind, size_bytes in (
        *_conversions(opened),
        *_parameters(opened),
        *_tied_gradients(opened),
        *_sends(opened),
    ):
        sent[axis, kind] += size_bytes / opened.sharded.stage_ranks  # type: ignore[assignment]
    return tuple(
        Sent(axis, kind, size_bytes) for (axis, kind), size_bytes in sent.most_common() if size_bytes
    )


_Part = tuple[str, str, float]
"""Axis, kind, and what the devices of all pipeline ranks send, one of each."""


def _conversions(opened: Anatomy) -> Iterator[_Part]:
    ways = {axis.name: axis.size for axis in opened.sharded.axes}
    for conversion in opened.sharded.conversions:
        for hop in hops(conversion, opened):
            forward_bytes = (2 if hop.again_s else 1) * hop.forward_bytes
            for kind, size_bytes in ((hop.forward, forward_bytes), (hop.backward, hop.backward_bytes)):
                if kind not in SILENT:
                    yield hop.axis, kind, conversion.count * _ring_bytes(kind, size_bytes, ways[hop.axis])


def _ring_bytes(kind: str, size_bytes: float, ranks: int) -> float:
    return _RING_TIMES[kind] * size_bytes * (ranks - 1) / ranks


def _parameters(opened: Anatomy) -> Iterator[_Part]:
    """Gathers for use and sums of gradients, shards outermost first, as they are priced."""
    execution, axes = opened.prices.execution, opened.sharded.axes
    gathers = 2 * execution.microbatches if execution.zero == 3 else 1
    scatters = execution.microbatches if execution.zero > 1 else 1
    for _, _, value, layout in parameters_by_rank(opened):
        elements = float(prod(local_shape(value.shape, layout, opened.sharded.sizes)))
        for axis in (each for each in axes if each.kind == SHARD):
            used = elements * dtype_bytes(value.dtype)
            yield axis.name, "all_gather", gathers * _ring_bytes("all_gather", used, axis.size)
            summed = elements * MASTER_BYTES
            yield axis.name, "reduce_scatter", scatters * _ring_bytes("reduce_scatter", summed, axis.size)
            elements /= axis.size
        for axis in (each for each in axes if each.kind == REPLICATE):
            yield axis.name, "all_reduce", _ring_bytes("all_reduce", elements * MASTER_BYTES, axis.size)


def _tied_gradients(opened: Anatomy) -> Iterator[_Part]:
    """Gradients of weights that several stages hold, each rank's part of them."""
    shards = prod(axis.size for axis in opened.sharded.axes if axis.kind == SHARD)
    holders = Counter(name for name, *_ in parameters_by_rank(opened))
    for name, _, value, layout in parameters_by_rank(opened):
        if holders[name] > 1:
            elements = prod(local_shape(value.shape, layout, opened.sharded.sizes)) / shards
            yield PIPELINE, "all_reduce", _ring_bytes("all_reduce", elements * MASTER_BYTES, holders[name])


def _sends(opened: Anatomy) -> Iterator[_Part]:
    """Forward across every cut between stages, and the gradients back."""
    microbatches = opened.prices.execution.microbatches
    for stage in opened.sharded.stages[:-1]:
        yield PIPELINE, SEND, float(microbatches * wire_bytes(stage.calls[1], opened))
        yield (
            PIPELINE,
            SEND,
            float(microbatches * wire_bytes(stage.calls[1], opened, only_gradients=True)),
        )
