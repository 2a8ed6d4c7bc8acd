"""Which executions a mesh may have: recomputation, microbatches and ZeRO levels, from the fastest to the leanest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod

from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.mesh import SHARD, MeshAxis
from autopar.planner.pins import Pins

__all__ = [
    "Chain",
    "execution_chains",
    "microbatch_counts",
    "stage_levels",
]

Chain = tuple[Execution, ...]
"""Executions that differ in the number of microbatches alone, ascending: ever leaner, ever slower."""


def execution_chains(
    axes: tuple[MeshAxis, ...], pins: Pins, batch: int, *, is_compiled: bool = False
) -> tuple[Chain, ...]:
    """Everything the pins allow on a mesh, chains from the fastest to the leanest."""
    counts = microbatch_counts(axes, pins, batch)
    return tuple(
        tuple(Execution(is_compiled, recompute, count, zero) for count in counts)
        for recompute in ((pins.recompute,) if pins.recompute else RECOMPUTE_LEVELS)
        for zero in _zero_levels(axes, pins)
    )


def stage_levels(execution: Execution, pins: Pins) -> tuple[str, ...]:
    """Recompute levels that a stage may have when strategies were chosen for one of them: that one and leaner."""
    if pins.recompute:
        return (pins.recompute,)
    return RECOMPUTE_LEVELS[RECOMPUTE_LEVELS.index(execution.recompute) :]


def _zero_levels(axes: tuple[MeshAxis, ...], pins: Pins) -> tuple[int, ...]:
    """Level 1 is left to pins: it keeps whole gradients, and saves traffic only over many microbatches."""
    if not any(axis.kind == SHARD for axis in axes):
        return (0,)
    return (pins.zero,) if pins.zero else (2, 3)


def microbatch_counts(axes: Sequence[MeshAxis], pins: Pins, batch: int) -> tuple[int, ...]:
    """Numbers of microbatches to try, ascending: those that leave every data rank whole sequences."""
    counts = [count for count in range(1, batch + 1) if batch % count == 0]
    if pins.microbatch is None:
        return tuple(counts)
    wanted = {batch // (pins.microbatch * ways) for ways in _data_ways(axes) if _divides(batch, pins, ways)}
    return tuple(count for count in counts if count in wanted)


def _divides(batch: int, pins: Pins, ways: int) -> bool:
    return batch % ((pins.microbatch or 1) * ways) == 0


def _data_ways(axes: Sequence[MeshAxis]) -> Iterator[int]:
    """Numbers of data ranks that a mesh may come to have, by which axes shard the batch."""
    fixed = prod(axis.size for axis in axes if axis.role in ("dp_replicate", "dp_shard"))
    free = [axis.size for axis in axes if not axis.role]
    for count in range(len(free) + 1):
        for sizes in combinations(free, count):
            yield fixed * prod(sizes)
