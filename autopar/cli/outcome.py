"""What a run found out: measured beside predicted, and whether the numbers are the single device's."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autopar.report.units import plain, show_bytes, show_count, show_seconds, show_share

__all__ = ["Figures", "Outcome", "Verification", "outcome_json", "outcome_table"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is predicted and measured alike."""

    step_time_s: float
    """Measured: the median step without the first, each step as slow as its slowest rank."""
    tokens_per_s: float
    mfu: float
    """Model FLOPs over those of the planned cluster at its peak: see ``autopar.report.flops``."""
    hfu: float
    """The same with recomputation counted."""
    peak_memory_bytes: int
    """The largest over ranks."""
    memory: dict[str, int]
    """By category, of that rank; measured: what its tensors and torch's allocator tell."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The sharded model's loss and gradients against the single device's, before any step."""

    loss_relative_error: float
    gradient_relative_error: float
    """The largest over parameters: norm of the difference over norm of the gradient."""
    worst_parameter: str
    passed: bool
    tolerance: float
    mode: str
    """``train``, or ``eval`` where the model drops out at random."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that ``autopar run`` reports."""

    predicted: Figures
    measured: Figures
    verification: Verification | None
    losses: list[float]
    """By step."""
    processes: int
    device: str
    """``cpu`` or the GPU's name."""
    memory_measure: str
    """What ``measured.peak_memory_bytes`` is."""


def outcome_json(outcome: Outcome) -> str:
    """One JSON object; without verification it has no such key."""
    data = msgspec.to_builtins(outcome)
    if outcome.verification is None:
        del data["verification"]
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()


def outcome_table(outcome: Outcome) -> RenderableType:
    """Predicted beside measured, for people."""
    table = Table(title=f"{outcome.processes} processes on {outcome.device}", title_justify="left")
    for name in ("", "predicted", "measured", "measured / predicted"):
        table.add_column(name, justify="left" if not name else "right")
    predicted, measured = outcome.predicted, outcome.measured
    for label, show, before, after in (
        ("step time", show_seconds, predicted.step_time_s, measured.step_time_s),
        ("tokens/s", show_count, predicted.tokens_per_s, measured.tokens_per_s),
        ("MFU", show_share, predicted.mfu, measured.mfu),
        *([("HFU", show_share, predicted.hfu, measured.hfu)] if predicted.hfu != predicted.mfu else []),
        ("peak memory", show_bytes, predicted.peak_memory_bytes, measured.peak_memory_bytes),
    ):
        ratio = f"{after / before:.2f}" if before else "–"
        table.add_row(label, show(before), show(after), ratio)
    first, last = outcome.losses[0], outcome.losses[-1]
    lines = [
        Text(f"loss {first:.6f} → {last:.6f} in {len(outcome.losses)} steps"),
        Text(f"peak memory measured: {outcome.memory_measure}", style="dim"),
    ]
    return Group(table, *lines, *([_verdict(outcome.verification)] if outcome.verification else []))


def _verdict(found: Verification) -> Text:
    style, word = ("bold green", "verified") if found.passed else ("bold red", "NOT the single-device model")
    detail = (
        f": loss differs by {found.loss_relative_error:.1e}, gradients by at most "
        f"{found.gradient_relative_error:.1e} ({plain(found.worst_parameter)}); "
        f"tolerance {found.tolerance:.0e}, relative"
    )
    mode = ", in eval mode because the model drops out at random" if found.mode == "eval" else ""
    return Text.assemble((word, style), detail, mode)
