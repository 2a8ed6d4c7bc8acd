"""Figure: the candidate strategies of one operator with their prices."""

from __future__ import annotations

from typing import Any

from autopar.plan.schema import Plan
from autopar.report.anatomy import NOTHING, Anatomy, anatomy
from autopar.report.candidates import PricedCandidate, priced_candidates
from autopar.report.canvas import INK, OTHER_FAMILY_COLOR, add_legend, new_figure
from autopar.report.units import plain, show_seconds

__all__ = ["draw_candidates"]

COMPUTE_COLOR, CONVERSION_COLOR = OTHER_FAMILY_COLOR, "#d55e00"
CANDIDATES_SHOWN = 14
DETAILED = ("column", "row", "features", "vocabulary")
"""Roles that are shown with the factor that they split."""


def draw_candidates(plan: Plan, operator: str) -> Any:
    """What each strategy of ``operator`` (``GPTBlock.up``) would cost, its neighbours as the plan has them.

    Raises KeyError for an operator that the plan does not have.
    """
    opened = anatomy(plan)
    type_name, _, name = operator.partition(".")
    if type_name not in opened.types:
        raise KeyError(f"the plan has no segment type {type_name!r}: it has {', '.join(opened.types)}")
    found = priced_candidates(opened, type_name, name)
    shown = found[:CANDIDATES_SHOWN]
    figure = new_figure(10.5, 0.36 * len(shown) + 1.9)
    axes = figure.subplots()
    for line, candidate in enumerate(shown):
        _draw_bar(axes, line, candidate)
    longest = max((each.operator_s + each.conversion_s for each in shown), default=1.0) or 1.0
    axes.set(xlim=(0, 1.35 * longest), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [_label(opened, each) for each in shown], fontsize=9)
    for label, each in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if each.is_chosen else "normal")
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= 1.1 * longest]
    axes.set_xticks(ticks, [show_seconds(tick) for tick in ticks])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    rest = f", the cheapest {len(shown)} of {len(found)}" if len(found) > len(shown) else ""
    figure.suptitle(f"Strategies of {plain(operator)} and what they cost in a step{rest}", fontsize=12)
    add_legend(figure, {"the operator": COMPUTE_COLOR, "conversions it needs": CONVERSION_COLOR})
    return figure


def _draw_bar(axes: Any, line: int, candidate: PricedCandidate) -> None:
    total_s = candidate.operator_s + candidate.conversion_s
    edge = {"edgecolor": INK, "linewidth": 1.4} if candidate.is_chosen else {}
    axes.barh(line, candidate.operator_s, height=0.66, color=COMPUTE_COLOR, **edge)
    if candidate.conversion_s:
        axes.barh(
            line,
            candidate.conversion_s,
            left=candidate.operator_s,
            height=0.66,
            color=CONVERSION_COLOR,
            **edge,
        )
    change = "chosen" if candidate.is_chosen else f"step {_signed(candidate.step_change_s)}"
    weight = "bold" if candidate.is_chosen else "normal"
    text = f"  {show_seconds(total_s)}   {change}"
    axes.text(total_s, line, text, va="center", fontsize=8.5, color=INK, fontweight=weight)


def _signed(seconds: float) -> str:
    return f"{'+' if seconds >= 0 else '−'}{show_seconds(abs(seconds))}"


def _label(opened: Anatomy, candidate: PricedCandidate) -> str:
    """``dp: batch, tp: column (o)``"""
    parts = []
    for axis, role, name in zip(opened.sharded.axes, candidate.roles, candidate.names, strict=True):
        detail = f" ({name})" if role in DETAILED else ""
        parts.append(f"{axis.name}: {'whole' if role == NOTHING else role}{detail}")
    return ",  ".join(parts) or "one device"
