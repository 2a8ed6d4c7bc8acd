"""How a plan runs its step, in words, and its stages as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from autopar.plan.schema import MemoryEntry, Plan, StageEntry
from autopar.report.units import plain, show_bytes, show_share

__all__ = ["execution_text", "mesh_text", "stage_memory_table", "stages_table"]

MOST_ROWS = 10
"""Stages or ranks that are listed one by one."""
ZERO = {
    1: "optimizer state sharded (ZeRO-1)",
    2: "gradients and optimizer state sharded (ZeRO-2)",
    3: "parameters sharded, gathered for every use (ZeRO-3)",
}


def mesh_text(plan: Plan) -> str:
    """``pp 4 × tp 8``"""
    return " × ".join(f"{plain(axis.axis)} {axis.size}" for axis in plan.mesh) or "one device"


def execution_text(plan: Plan) -> str:
    """Microbatches, schedule, recomputation, what rests sharded, and whether the program is compiled."""
    schedule, levels = plan.schedule, dict.fromkeys(stage.recompute for stage in plan.stages)
    parts = ["compiled" if plan.training.compile else "eager"]
    if schedule.microbatches > 1:
        parts.append(f"{schedule.microbatches} microbatches")
    if schedule.name != "none":
        chunks = len(plan.stages) // plan.mesh[0].size
        parts.append(f"schedule {plain(schedule.name)}" + (f", {chunks} stages a rank" if chunks > 1 else ""))
    if set(levels) != {"none"}:
        parts.append("recompute " + " / ".join(map(plain, levels)))
    if plan.stages and plan.stages[0].zero in ZERO:
        parts.append(ZERO[plan.stages[0].zero])
    return ", ".join(parts)


def stages_table(plan: Plan) -> Table:
    """One row a stage: its ranks, its segments, what it recomputes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "ranks", "segments", "recompute"):
        table.add_column(column)
    rows = [
        (str(position), f"{stage.ranks[0]}–{stage.ranks[1]}", _segments(stage), plain(stage.recompute))
        for position, stage in enumerate(plan.stages)
    ]
    for row in _shortened(rows):
        table.add_row(*row)
    return table


def _shortened(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """The first and the last rows, where there are many."""
    if len(rows) <= MOST_ROWS:
        return rows
    return [*rows[: MOST_ROWS - 3], ("⋯", *("" for _ in rows[0][1:])), *rows[-2:]]


def _segments(stage: StageEntry) -> str:
    """Runs of modules by their first and last."""
    runs: list[list[str]] = []
    for call in stage.segments:
        name = plain(call.module) if call.module else plain(call.type)
        if runs and call.module and _stem(runs[-1][-1]) == _stem(name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}" for run in runs)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def stage_memory_table(plan: Plan, categories: dict[str, str]) -> Table:
    """Memory of a device of every pipeline rank, by category."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("pp rank")
    for label in (*categories.values(), "peak", "of limit"):
        table.add_column(label, justify="right")
    limit = plan.cluster.memory_limit_bytes
    rows = []
    for rank, entry in enumerate(plan.predicted.memory):
        total = _total(entry, categories)
        cells = [show_bytes(getattr(entry, field)) for field in categories]
        rows.append((str(rank), *cells, show_bytes(total), show_share(total / limit)))
    for row in _shortened(rows):
        table.add_row(*row)
    return table


def _total(entry: MemoryEntry, categories: dict[str, str]) -> int:
    return sum(getattr(entry, field) for field in categories)
