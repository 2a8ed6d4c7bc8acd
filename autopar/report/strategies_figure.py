"""Figure: who does what, as a map of operators (down) and devices (across)."""

from __future__ import annotations

from math import prod
from typing import Any

from autopar.plan.schema import Plan
from autopar.planner.operators import PlannedOperator
from autopar.report.anatomy import NOTHING, PARTIAL, ROLES, Anatomy, anatomy
from autopar.report.canvas import ROLE_COLORS, add_legend, new_figure, text_color
from autopar.report.units import plain

__all__ = ["draw_strategies"]

RANKS_SHOWN = 16
"""Devices drawn where a plan has more."""
LINE_HEIGHT_IN = 0.25


def draw_strategies(plan: Plan) -> Any:
    """The strategy of every operator with a price: a cell for each device, a strip for each mesh axis.

    Colours say what the axis does, numbers which piece is the device's: equal numbers, equal work.
    """
    opened = anatomy(plan)
    shown = {name: _costly(opened, name) for name in opened.types}
    shown = {name: operators for name, operators in shown.items() if operators}
    lines = [len(operators) for operators in shown.values()]
    ranks = min(RANKS_SHOWN, max(1, prod(opened.prices.sizes)))
    strips = ranks * max(1, len(opened.prices.sizes))
    figure = new_figure(max(9.0, 3.0 + 0.42 * strips), LINE_HEIGHT_IN * sum(lines) + 0.45 * len(lines) + 1.5)
    figure.suptitle(f"Which device does what: {_mesh(opened)}", fontsize=13)
    panels = figure.subplots(len(lines), 1, squeeze=False, height_ratios=lines)[:, 0]
    used: set[str] = set()
    for axes, (type_name, operators) in zip(panels, shown.items(), strict=True):
        used |= _draw_panel(axes, opened, type_name, operators, ranks)
    _label_ranks(panels[0], opened, ranks)
    figure.align_ylabels(list(panels))
    add_legend(figure, {f"{r}: {ROLES[r]}": ROLE_COLORS[r] for r in ROLES if r in used}, columns=2)
    return figure


def _mesh(opened: Anatomy) -> str:
    return " × ".join(f"{axis.name} {axis.size}" for axis in opened.sharded.axes) or "one device"


def _costly(opened: Anatomy, type_name: str) -> list[PlannedOperator]:
    prices = opened.realized.operators
    return [each for each in opened.types[type_name].operators if prices[type_name, each.name].seconds > 0]


def _label_ranks(axes: Any, opened: Anatomy, ranks: int) -> None:
    sizes = opened.prices.sizes
    names = ", ".join(axis.name for axis in opened.sharded.axes)
    labels = [
        f"{rank}\n({', '.join(map(str, _coordinates(rank, sizes)))})" if len(sizes) > 1 else str(rank)
        for rank in range(ranks)
    ]
    axes.set_xticks([rank + 0.5 for rank in range(ranks)], labels, fontsize=9)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    more = f", the first {ranks} of {prod(sizes)}" if prod(sizes) > ranks else ""
    axes.set_xlabel(f"device ({names}){more}" if names else "device", fontsize=9)


def _draw_panel(
    axes: Any, opened: Anatomy, type_name: str, operators: list[PlannedOperator], ranks: int
) -> set[str]:
    """Draws one segment type; returns the roles that occur."""
    count = opened.counts[type_name]
    axes.set(xlim=(0, ranks), ylim=(len(operators), 0))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_yticks(
        [line + 0.5 for line in range(len(operators))],
        [plain(each.name) for each in operators],
        fontsize=8,
    )
    axes.set_ylabel(plain(type_name) + (f" × {count}" if count > 1 else ""), fontsize=10, fontweight="bold")
    used: set[str] = set()
    for line, operator in enumerate(operators):
        roles = opened.roles(type_name, operator) or (NOTHING,)
        used |= set(roles)
        for rank in range(ranks):
            _draw_cell(axes, rank, line, roles, _coordinates(rank, opened.prices.sizes) or (0,))
    for rank in range(ranks + 1):
        axes.axvline(rank, color="white", linewidth=3)
    return used


def _coordinates(rank: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Position of a rank on each axis; the last axis runs fastest."""
    found = []
    for size in reversed(sizes):
        found.append(rank % size)
        rank //= size
    return tuple(reversed(found))


def _draw_cell(axes: Any, rank: int, line: int, roles: tuple[str, ...], places: tuple[int, ...]) -> None:
    from matplotlib.patches import Rectangle

    width = 1 / len(roles)
    for strip, (role, place) in enumerate(zip(roles, places, strict=True)):
        color = ROLE_COLORS[role]
        left = rank + strip * width
        axes.add_patch(Rectangle((left, line), width, 1, facecolor=color, edgecolor="white", linewidth=0.8))
        if role not in (NOTHING, PARTIAL):
            middle = left + width / 2
            axes.text(
                middle, line + 0.52, str(place), ha="center", va="center", fontsize=7, color=text_color(color)
            )
