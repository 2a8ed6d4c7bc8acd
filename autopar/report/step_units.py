"""What FSDP2 gathers and reduces as one: the parameters of each block, and those of the root."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from autopar.capture.graph import Value
from autopar.planner.execution import Execution
from autopar.planner.prices import Known, Prices
from autopar.planner.tensors import parameter_groups
from autopar.report.anatomy import Anatomy
from autopar.shardings.placement import Layout, local_shape
from cost_models.dtypes import dtype_bytes
from cost_models.simulator_blocks import Unit

__all__ = ["ROOT", "units_of"]

ROOT = ""
"""Everything outside blocks, and what several blocks share."""


def units_of(opened: Anatomy) -> dict[str, Unit]:
    """By path of the block, what is gathered and reduced for it; nothing on a mesh without data axes.

    FSDP2 gathers the root's parameters once a microbatch and keeps them from forward to backward.
    """
    if not any(axis.is_data for axis in opened.prices.axes):
        return {}
    once = replace(opened.prices, known=Known(), execution=Execution(zero=1))
    units: dict[str, Unit] = {ROOT: Unit(is_kept=True)}
    for group in parameter_groups(opened.sharded.graph):
        if group.value.requires_grad:
            layout = opened.sharded.parameters[group.names[0]]
            part = _unit(group.value, layout, once, opened.prices)
            for name in group.names:
                path = _block_of(name, opened)
                units[path] = _joined(units.get(path, Unit()), part)
    return units


def _block_of(name: str, opened: Anatomy) -> str:
    """The innermost block that a parameter belongs to."""
    paths = {call.module for call in opened.sharded.graph.calls if call.module}
    return max((path for path in paths if name.startswith(f"{path}.")), key=len, default=ROOT)


def _unit(value: Value, layout: Layout, once: Prices, prices: Prices) -> Unit:
    """One parameter by itself; ``once`` prices a step that gathers and reduces once."""
    used_bytes = prod(local_shape(value.shape, layout, prices.sizes)) * dtype_bytes(value.dtype)
    gather_s, slices = once.gather_s(used_bytes), prices.execution.microbatches - 1
    reduce_s = once.traffic_s(value, layout) - gather_s
    all_reduces_s = prices.traffic_s(value, layout) - prices.gather_s(used_bytes)
    return Unit(
        gather_s=gather_s,
        gathered_bytes=used_bytes if prices.shard_ways > 1 else 0,
        slice_reduce_s=(all_reduces_s - reduce_s) / slices if slices else 0.0,
        reduce_s=reduce_s,
        gradient_bytes=used_bytes,
    )


def _joined(unit: Unit, part: Unit) -> Unit:
    return replace(
        unit,
        gather_s=unit.gather_s + part.gather_s,
        gathered_bytes=unit.gathered_bytes + part.gathered_bytes,
        slice_reduce_s=unit.slice_reduce_s + part.slice_reduce_s,
        reduce_s=unit.reduce_s + part.reduce_s,
        gradient_bytes=unit.gradient_bytes + part.gradient_bytes,
    )
