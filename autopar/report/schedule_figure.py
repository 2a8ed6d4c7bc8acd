"""Figure: the played schedule of a plan, a row for each pipeline rank and a box for each pass of a microbatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from autopar.plan.schema import Plan
from autopar.report.anatomy import anatomy
from autopar.report.canvas import INK, SCHEDULE_COLORS, add_legend, new_figure, text_color
from autopar.report.inter_and_intra import played_blocks
from autopar.report.stages_text import mesh_text
from autopar.report.units import plain, show_seconds, show_share
from cost_models.timeline import COMPUTE, Event, Timeline

__all__ = ["draw_schedule"]

WIDTH_IN, ROW_HEIGHT_IN = 12, 0.36
NARROWEST_SHARE = 0.011
"""Of the figure's width: what a box must have to be numbered."""
MOST_FRAMED = 200
"""Boxes of a rank that are set apart by white lines."""
_NAMES = {"F": "forward", "B": "backward", "I": "backward", "W": "gradients of weights"}


@dataclass(frozen=True, slots=True)
class _Box:
    """One pass of one microbatch through a stage, its collectives included."""

    what: str
    """A key of ``SCHEDULE_COLORS``."""
    label: str
    start_s: float
    end_s: float


def draw_schedule(plan: Plan, *, share: float = 1.0) -> Any:
    """What each rank computes when; of a long step its first ``share``.

    Boxes are numbered by microbatch, where there is room. Where it is white a rank is idle, or waits for a transfer.
    """
    timeline = played_blocks(anatomy(plan))
    until_s = share * timeline.step_s
    figure = new_figure(WIDTH_IN, 1.5 + ROW_HEIGHT_IN * len(timeline.ranks))
    axes = figure.subplots()
    boxes = [list(_boxes(events)) for events in timeline.ranks]
    for rank, mine in enumerate(boxes):
        _draw_rank(axes, rank, [box for box in mine if box.start_s < until_s], until_s)
    axes.set(xlim=(0, until_s), ylim=(len(boxes) - 0.45, -0.55))
    axes.set_yticks(range(len(boxes)), [f"pp {rank}" for rank in range(len(boxes))])
    axes.xaxis.set_major_formatter(lambda seconds, _: show_seconds(seconds))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_title(_title(plan, timeline, share), fontsize=11, loc="left", color=INK)
    drawn = {box.what for mine in boxes for box in mine if box.start_s < until_s}
    add_legend(figure, {what: color for what, color in SCHEDULE_COLORS.items() if what in drawn})
    return figure


def _title(plan: Plan, timeline: Timeline, share: float) -> str:
    part = "" if share >= 1 else f"the first {show_share(share)} of "
    schedule = "" if plan.schedule.name == "none" else f"{plain(plan.schedule.name)}, "
    return (
        f"{mesh_text(plan)}: {schedule}{plan.schedule.microbatches} microbatches; {part}"
        f"{show_seconds(timeline.step_s)}, {show_share(_computing(timeline))} of it computing"
    )


def _computing(timeline: Timeline) -> float:
    """Share of the step in which operators run, on average over ranks."""
    others_s = (
        timeline.bubble_s(rank) + timeline.exposed_communication_s(rank)
        for rank in range(len(timeline.ranks))
    )
    return 1.0 - mean(others_s) / timeline.step_s if timeline.step_s else 0.0


def _boxes(events: Sequence[Event]) -> Iterator[_Box]:
    """A pass ends with an event of no seconds that is named after it: ``2F0``."""
    begun: Event | None = None
    for event in (each for each in events if each.action.stream == COMPUTE):
        if event.action.kind == "OPTIMIZER":
            yield _Box("optimizer", "", event.start_s, event.end_s)
            continue
        begun = begun or event
        if event.action.kind in _NAMES and not event.action.seconds:
            microbatch = event.action.name.rpartition(event.action.kind)[2]
            yield _Box(_NAMES[event.action.kind], microbatch, begun.start_s, event.end_s)
            begun = None


def _draw_rank(axes: Any, rank: int, boxes: Sequence[_Box], until_s: float) -> None:
    is_crowded = len(boxes) > MOST_FRAMED
    for what, color in SCHEDULE_COLORS.items():
        spans = [(box.start_s, box.end_s - box.start_s) for box in boxes if box.what == what]
        width = 0.0 if is_crowded else 0.8
        axes.broken_barh(spans, (rank - 0.4, 0.8), facecolors=color, edgecolor="white", linewidth=width)
    for box in boxes:
        if box.label and box.end_s <= until_s and box.end_s - box.start_s > NARROWEST_SHARE * until_s:
            color = text_color(SCHEDULE_COLORS[box.what])
            middle = (box.start_s + box.end_s) / 2
            axes.text(middle, rank, box.label, ha="center", va="center", fontsize=7, color=color)
