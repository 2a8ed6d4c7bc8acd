"""Figures without a display: matplotlib, imported when one is drawn, and the colours that all share.

Colours are Okabe and Ito's ("Color Universal Design", 2008), which colour-blind people tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "COLLECTIVE_COLORS",
    "FAMILY_COLORS",
    "INK",
    "MEMORY_COLORS",
    "PALE",
    "RANK_COLORS",
    "ROLE_COLORS",
    "SCHEDULE_COLORS",
    "SEND_COLOR",
    "TIME_COLORS",
    "add_legend",
    "new_figure",
    "patches",
    "text_color",
]

INK, PALE = "#222222", "#e6e6e6"
_ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _VERMILION, _PURPLE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)

ROLE_COLORS = {
    "batch": _SKY,
    "sequence": _BLUE,
    "column": _GREEN,
    "row": _ORANGE,
    "vocabulary": _PURPLE,
    "features": "#8fd3bd",
    "partial": "#f6d48a",
    "replicated": PALE,
}
"""By what an axis does to an operator."""

COLLECTIVE_COLORS = {
    "all_reduce": _VERMILION,
    "all_gather": _BLUE,
    "reduce_scatter": _GREEN,
    "all_to_all": _PURPLE,
    "slice": "#bbbbbb",
    "share": "#bbbbbb",
    "pad": "#bbbbbb",
}

SEND_COLOR = _ORANGE
"""From one stage of a pipeline to another."""

TIME_COLORS = {"operators": _SKY, "exposed communication": _YELLOW, "idle": PALE}
"""By what a device does with its seconds."""

SCHEDULE_COLORS = {
    "forward": _BLUE,
    "backward": _GREEN,
    "gradients of weights": "#8fd3bd",
    "optimizer": _PURPLE,
}
"""By what a pipeline rank does."""

FAMILY_COLORS = {
    "matmul": _ORANGE,
    "attention": _VERMILION,
    "embedding": _PURPLE,
    "cross_entropy": _PURPLE,
    "free": "#f4f4f4",
}
"""By operator family; elementwise and the rest share one more colour."""
OTHER_FAMILY_COLOR = "#cfe6f5"

MEMORY_COLORS = {
    "parameters_bytes": _BLUE,
    "gradients_bytes": _SKY,
    "optimizer_bytes": _GREEN,
    "gathered_bytes": _YELLOW,
    "activations_bytes": _ORANGE,
    "temporaries_bytes": _VERMILION,
    "overhead_bytes": "#999999",
}

RANK_COLORS = (_SKY, _ORANGE, _GREEN, _PURPLE, _YELLOW, _BLUE, _VERMILION, "#999999")

_DARK = {_BLUE, _GREEN, _VERMILION, "#999999"}


def new_figure(width_in: float, height_in: float) -> Any:
    """An empty ``matplotlib.figure.Figure``. Raises ImportError saying what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install autopar[notebook]") from error
    return Figure(figsize=(width_in, height_in), dpi=110, layout="constrained")


def add_legend(figure: Any, colors: dict[str, str], columns: int = 4) -> None:
    """A legend of coloured patches under the figure."""
    handles = patches(colors)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9,
    )


def patches(colors: Mapping[str, str]) -> list[Any]:
    """Coloured patches with labels, for legends."""
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=color, edgecolor="#888888", linewidth=0.5, label=label)
        for label, color in colors.items()
    ]


def text_color(background: str) -> str:
    """Readable on ``background``."""
    return "white" if background in _DARK else INK
