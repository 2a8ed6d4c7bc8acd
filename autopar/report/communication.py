"""Everything that a step sends, in the order in which its forward comes to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from autopar.capture.graph import Graph
from autopar.planner.mesh import SHARD
from autopar.planner.prices import MASTER_BYTES
from autopar.planner.tensors import parameter_groups
from autopar.report.anatomy import Anatomy
from autopar.shardings.conversion import Step
from autopar.shardings.placement import Layout, local_shape
from autopar.shardings.sharded import Conversion
from cost_models.dtypes import dtype_bytes

__all__ = ["SILENT", "Exchange", "Hop", "change_of", "exchanges", "hops"]

SILENT = ("nothing", "slice", "share", "pad")
"""Steps of a conversion that send nothing."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One collective along one axis."""

    axis: str
    forward: str
    """``all_gather``… or one of ``SILENT``."""
    backward: str
    forward_bytes: int
    """The whole tensor that the collective makes or reduces, as one rank holds it; 0 when nothing is sent."""
    backward_bytes: int
    forward_s: float
    """Each time."""
    backward_s: float
    again_s: float = 0.0
    """Of the forward, repeated before the backward."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One tensor's way from one layout to another, or the parameters' traffic along a data axis."""

    segment: str
    """Segment type; empty between segments and for parameters."""
    tensor: str
    change: str
    """What it does to the layout: ``tp: P → R``."""
    hops: tuple[Hop, ...]
    count: int
    """Times a step."""
    seconds: float
    """Forward and backward, all times together, before any of it is hidden."""

    @property
    def sent_bytes(self) -> int:
        """Of a whole step."""
        return self.count * sum(
            (2 if hop.again_s else 1) * hop.forward_bytes + hop.backward_bytes for hop in self.hops
        )


def exchanges(opened: Anatomy) -> tuple[Exchange, ...]:
    """Conversions in the order of the forward, then what the data-parallel engine does to parameters."""
    places = _places(opened.sharded.graph)
    ordered = sorted(opened.sharded.conversions, key=lambda each: places.get(each.members[0], (-1, -1)))
    return (*(_exchange(each, opened) for each in ordered), *_parameter_traffic(opened))


def _places(graph: Graph) -> dict[tuple[str, str], tuple[int, int]]:
    """(call, operator) after which each value exists; parameters and inputs of the batch come first."""
    types = {segment.name: segment for segment in graph.types}
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for position, call in enumerate(graph.calls):
        segment = types[call.type]
        for name in segment.inputs:
            places.setdefault((call.type, name), (position, -1))
        for index, operator in enumerate(segment.operators):
            for name in filter(None, operator.results):
                places.setdefault((call.type, name), (position, index))
        for name in call.results:
            places.setdefault(("", name), (position, len(segment.operators)))
    return places


def _exchange(conversion: Conversion, opened: Anatomy) -> Exchange:
    type_name, value = conversion.members[0]
    return Exchange(
        segment=type_name,
        tensor=value,
        change=change_of(conversion, opened),
        hops=tuple(hops(conversion, opened)),
        count=conversion.count,
        seconds=conversion.seconds,
    )


def change_of(conversion: Conversion, opened: Anatomy) -> str:
    """The axes along which the layout changes: ``dp: S(0) → R, tp: P → S(1)``."""
    return ", ".join(
        f"{axis}: {source} → {target}"
        for axis, source, target in zip(
            opened.sharded.axis_names, conversion.source, conversion.target, strict=True
        )
        if source != target
    )


def hops(conversion: Conversion, opened: Anatomy) -> Iterator[Hop]:
    """The collectives of one conversion, in the order of the forward."""
    layout = conversion.source
    for step in conversion.steps:
        after = (*layout[: step.axis], step.target, *layout[step.axis + 1 :])
        yield _hop(step, conversion, layout, after, opened)
        layout = after


def _hop(step: Step, conversion: Conversion, before: Layout, after: Layout, opened: Anatomy) -> Hop:
    sizes = opened.prices.sizes
    held = [
        prod(local_shape(conversion.value.shape, layout, sizes)) * dtype_bytes(conversion.value.dtype)
        for layout in (before, after)
    ]
    both_s = opened.prices.step_s(step, *held)
    forward_s = opened.prices.step_s(replace(step, backward="nothing"), *held)
    return Hop(
        axis=opened.sharded.axes[step.axis].name,
        forward=step.forward,
        backward=step.backward,
        forward_bytes=0 if step.forward in SILENT else max(held),
        backward_bytes=0 if step.backward in SILENT else max(held),
        forward_s=forward_s,
        backward_s=both_s - forward_s,
        again_s=opened.prices.again_s(step, *held) if conversion.runs_again else 0.0,
    )


def _parameter_traffic(opened: Anatomy) -> Iterator[Exchange]:
    """Gathers of parameters and sums of gradients along the data axes."""
    elements = gathered_bytes = 0.0
    for group in parameter_groups(opened.sharded.graph):
        value, layout = group.value, opened.sharded.parameters[group.names[0]]
        if value.requires_grad:
            held = len(group.names) * prod(local_shape(value.shape, layout, opened.sharded.sizes))
            gathered_bytes += held * dtype_bytes(value.dtype)
            elements += held
    if any(axis.kind == SHARD for axis in opened.sharded.axes):
        yield _gathers(round(gathered_bytes), opened)
    if any(axis.is_data for axis in opened.sharded.axes):
        yield _gradient_sums(round(MASTER_BYTES * elements), opened)


def _gathers(gathered_bytes: int, opened: Anatomy) -> Exchange:
    """Once a step, or for the forward and the backward of every microbatch."""
    names = " ".join(axis.name for axis in opened.sharded.axes if axis.kind == SHARD)
    seconds, is_often = opened.prices.gather_s(gathered_bytes), opened.prices.execution.zero == 3
    times = opened.prices.execution.microbatches if is_often else 1
    again = ("all_gather", gathered_bytes, seconds / times / 2) if is_often else ("nothing", 0, 0.0)
    hop = Hop(names, "all_gather", again[0], gathered_bytes, again[1], seconds / times - again[2], again[2])
    change = f"{names}: at rest → whole, {'for every use' if is_often else 'once'}"
    return Exchange("", "parameters, for use", change, (hop,), times, seconds)


def _gradient_sums(summed_bytes: int, opened: Anatomy) -> Exchange:
    """Once a step, or scattered with every microbatch; replicas of shards are summed once."""
    data = [axis for axis in opened.sharded.axes if axis.is_data]
    names, shards = " ".join(axis.name for axis in data), sum(axis.kind == SHARD for axis in data)
    kind = "reduce_scatter" if shards == len(data) else "all_reduce"
    times = opened.prices.execution.microbatches if shards and opened.prices.execution.zero > 1 else 1
    seconds = opened.prices.gradient_sync_s(summed_bytes)
    hop = Hop(names, "nothing", kind, 0, summed_bytes, 0.0, seconds / times)
    return Exchange("", "gradients of parameters", f"{names}: partial → summed", (hop,), times, seconds)
