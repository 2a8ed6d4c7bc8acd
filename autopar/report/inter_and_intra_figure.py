"""Figure: where the devices' time goes under several plans, and what they send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopar.plan.schema import Plan
from autopar.report.canvas import (
    COLLECTIVE_COLORS,
    INK,
    SEND_COLOR,
    TIME_COLORS,
    new_figure,
    patches,
    text_color,
)
from autopar.report.device_traffic import SEND
from autopar.report.inter_and_intra import LITTLE, DeviceStep, device_step
from autopar.report.units import plain, show_bytes, show_seconds

__all__ = ["draw_inter_and_intra"]

SENT_COLORS = {SEND: SEND_COLOR} | {
    kind: COLLECTIVE_COLORS[kind] for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
}
SHOWN_SHARE = 0.07
"""Of the longest bar: what a part must have for seven letters inside it."""

_Part = tuple[float, str, str]
"""Length, colour, label."""


def draw_inter_and_intra(plans: Mapping[str, Plan]) -> Any:
    """Left, the seconds of a step; right, the bytes that a device sends in it; a bar for each plan."""
    steps = [device_step(name, plan) for name, plan in plans.items()]
    figure = new_figure(13, 1.9 + 0.85 * len(steps))
    times, bytes_sent = figure.subplots(1, 2)
    _draw_bars(times, [_times(step) for step in steps], show_seconds)
    _draw_bars(bytes_sent, [_sent(step) for step in steps], show_bytes)
    times.set_yticks(range(len(steps)), [f"{plain(step.name)}\n{plain(step.mesh)}" for step in steps])
    times.tick_params(axis="y", labelsize=9)
    bytes_sent.set_yticks([])
    times.set_title("a step, average device", fontsize=11, loc="left")
    bytes_sent.set_title("sent by the average device in a step", fontsize=11, loc="left")
    _add_legend(times, TIME_COLORS)
    kinds = {each.kind for step in steps for each in step.sent if each.size_bytes > LITTLE * _all_bytes(step)}
    _add_legend(bytes_sent, {_kind_name(k): color for k, color in SENT_COLORS.items() if k in kinds})
    return figure


def _add_legend(axes: Any, colors: Mapping[str, str]) -> None:
    axes.legend(
        handles=patches(colors),
        loc="upper left",
        bbox_to_anchor=(0, -0.14),
        ncols=4,
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
    )


def _all_bytes(step: DeviceStep) -> float:
    return step.stage_bytes + step.collective_bytes


def _times(step: DeviceStep) -> list[_Part]:
    seconds = (step.operators_s, step.exposed_s, step.idle_s)
    return [
        (part_s, color, show_seconds(part_s))
        for part_s, color in zip(seconds, TIME_COLORS.values(), strict=True)
    ]


def _sent(step: DeviceStep) -> list[_Part]:
    """By axis and kind, what goes from stage to stage first."""
    ordered = sorted(step.sent, key=lambda each: each.kind != SEND)
    return [
        (each.size_bytes, SENT_COLORS[each.kind], f"{plain(each.axis)} {show_bytes(each.size_bytes)}")
        for each in ordered
    ]


def _kind_name(kind: str) -> str:
    return "from stage to stage" if kind == SEND else kind


def _draw_bars(axes: Any, bars: Sequence[Sequence[_Part]], show: Any) -> None:
    longest = max((sum(length for length, _, _ in bar) for bar in bars), default=0.0) or 1.0
    for line, bar in enumerate(bars):
        left = 0.0
        for length, color, label in bar:
            axes.barh(line, length, left=left, height=0.62, color=color, edgecolor="white", linewidth=0.8)
            if length > SHOWN_SHARE * longest * max(1.0, len(label) / 7):
                middle = left + length / 2
                axes.text(
                    middle, line, label, ha="center", va="center", fontsize=8.5, color=text_color(color)
                )
            left += length
        axes.text(left, line, f"  {show(left)}", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 1.16 * longest), ylim=(len(bars) - 0.45, -0.55))
    axes.xaxis.set_major_formatter(lambda value, _: show(value))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
