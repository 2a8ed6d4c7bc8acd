"""Figure: what fills a device's memory at its peak."""

from __future__ import annotations

from typing import Any

from autopar.plan.schema import Plan
from autopar.report.anatomy import anatomy
from autopar.report.canvas import MEMORY_COLORS, new_figure, text_color
from autopar.report.text import MEMORY_CATEGORIES
from autopar.report.units import plain, show_bytes

__all__ = ["draw_memory"]

LIMIT_SHOWN = 2.5
"""The limit is drawn when it is at most this many times the peak; otherwise it is only named."""
LABEL_SHARE = 0.07
"""Of the peak: what a category must hold to be labelled inside the bar."""


def draw_memory(plan: Plan) -> Any:
    """Bytes by category on one device of each pipeline rank, stacked, beside the limit."""
    plan = anatomy(plan).plan
    stages = plan.predicted.memory
    figure = new_figure(10, 1.9 + 0.7 * len(stages))
    axes = figure.subplots()
    peak = max(1, *(sum(getattr(entry, field) for field in MEMORY_CATEGORIES) for entry in stages))
    limit = plan.cluster.memory_limit_bytes
    for stage, entry in enumerate(stages):
        left = 0
        for field, label in MEMORY_CATEGORIES.items():
            size = getattr(entry, field)
            if not size:
                continue
            axes.barh(
                stage,
                size,
                left=left,
                height=0.6,
                color=MEMORY_COLORS[field],
                label=f"{label} {show_bytes(size)}" if len(stages) == 1 else None if stage else label,
            )
            if size > LABEL_SHARE * peak:
                axes.text(
                    left + size / 2,
                    stage,
                    show_bytes(size),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=text_color(MEMORY_COLORS[field]),
                )
            left += size
    if limit <= LIMIT_SHOWN * peak:
        axes.axvline(limit, color="#222222", linestyle="--", linewidth=1.2)
        axes.text(limit, -0.42, f" limit {show_bytes(limit)}", fontsize=9, va="top")
    axes.set_xlim(0, 1.02 * max(peak, limit if limit <= LIMIT_SHOWN * peak else 0))
    axes.set_title(
        f"Peak memory of {'the fullest' if len(stages) > 1 else 'one'} device: {show_bytes(peak)} of "
        f"{show_bytes(limit)} on {plain(plan.cluster.name)}",
        fontsize=13,
    )
    _finish(figure, axes, len(stages))
    return figure


def _finish(figure: Any, axes: Any, stages: int) -> None:
    axes.set_yticks(range(stages), [f"pp {rank}" if stages > 1 else "every device" for rank in range(stages)])
    axes.set_ylim(stages - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda size, _: show_bytes(size))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
