"""What FSDP2 gathers and reduces as one: the parameters of each block, and those of the root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from autopar.capture.graph import Value
from autopar.planner.prices import Known, Prices
from autopar.planner.tensors import parameter_groups
from autopar.report.anatomy import Anatomy
from autopar.shardings.placement import Layout, local_shape
from autopar.shardings.sharded import stages_of_parameters
from cost_models.dtypes import dtype_bytes
from cost_models.simulator_blocks import Unit

__all__ = ["optimizer_s", "parameters_by_rank", "unit_name", "units_of"]


def unit_name(block: str, rank: int, opened: Anatomy) -> str:
    """The unit of a block's parameters, or of a pipeline rank's parameters outside blocks."""
    return block or ("root" if opened.sharded.stage_ranks == 1 else f"root of rank {rank}")


def units_of(opened: Anatomy) -> dict[str, Unit]:
    """What is gathered and reduced together, by name; nothing on a mesh without data axes.

    FSDP2 gathers the root's parameters once a microbatch and keeps them from forward to backward.
    """
    if not any(axis.is_data for axis in opened.prices.axes):
        return {}
    once = replace(
        opened.prices, known=Known(), execution=replace(opened.prices.execution, microbatches=1, zero=1)
    )
    units = {unit_name("", rank, opened): Unit(is_kept=True) for rank in range(opened.sharded.stage_ranks)}
    for name, rank, value, layout in parameters_by_rank(opened):
        unit = unit_name(_block_of(name, opened), rank, opened)
        units[unit] = _joined(units.get(unit, Unit()), _unit(value, layout, once, opened.prices))
    return units


def optimizer_s(opened: Anatomy) -> tuple[float, ...]:
    """By pipeline rank, the update of its parameters."""
    found = [0.0] * opened.sharded.stage_ranks
    for _, rank, value, layout in parameters_by_rank(opened):
        found[rank] += opened.prices.upkeep_s(value, layout) - opened.prices.traffic_s(value, layout)
    return tuple(found)


def parameters_by_rank(opened: Anatomy) -> Iterator[tuple[str, int, Value, Layout]]:
    """(name, pipeline rank, tensor, layout) of every trained parameter, on each rank that uses it."""
    stages = stages_of_parameters(opened.sharded)
    for group in parameter_groups(opened.sharded.graph):
        if group.value.requires_grad:
            for name in group.names:
                for rank in sorted({stage % opened.sharded.stage_ranks for stage in stages[name]}):
                    yield name, rank, group.value, opened.sharded.parameters[name]


def _block_of(name: str, opened: Anatomy) -> str:
    """The innermost block that a parameter belongs to; empty outside blocks."""
    paths = {call.module for call in opened.sharded.graph.calls if call.module}
    return max((path for path in paths if name.startswith(f"{path}.")), key=len, default="")


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
