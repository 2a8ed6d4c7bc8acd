"""Figure: the captured graph, one panel for each segment type, an operator a line."""

from __future__ import annotations

from typing import Any

from autopar.plan.schema import Plan
from autopar.planner.operators import PlannedOperator
from autopar.planner.work import family_of
from autopar.report.anatomy import Anatomy, anatomy
from autopar.report.canvas import FAMILY_COLORS, INK, OTHER_FAMILY_COLOR, add_legend, new_figure
from autopar.report.units import plain

__all__ = ["draw_segments"]

PANEL_WIDTH_IN, LINE_HEIGHT_IN = 4.7, 0.27
BOX_LEFT, BOX_WIDTH, ARC_WIDTH = 0.18, 0.35, 0.15
NAME_LENGTH, REMARK_LENGTH = 24, 40
"""Characters that fit into a box, and beside it."""


def draw_segments(plan: Plan) -> Any:
    """The captured graph by segments: repeated blocks once, arcs from each value to those who read it."""
    opened = anatomy(plan)
    types = opened.sharded.graph.types
    lines = max(len(segment.operators) + len(segment.inputs) for segment in types)
    figure = new_figure(PANEL_WIDTH_IN * len(types), LINE_HEIGHT_IN * lines + 1.6)
    figure.suptitle(f"{plain(plan.model.name)} in segments: {_chain(opened)}", fontsize=13)
    for axes, segment in zip(figure.subplots(1, len(types), squeeze=False)[0], types, strict=True):
        _draw_panel(axes, opened, segment.name, lines)
    shown = {"matrix product": "matmul", "attention": "attention", "vocabulary": "embedding", "view": "free"}
    legend = {label: FAMILY_COLORS[family] for label, family in shown.items()}
    add_legend(figure, {**legend, "elementwise, norms and others": OTHER_FAMILY_COLOR}, columns=5)
    return figure


def _chain(opened: Anatomy) -> str:
    """``Root0 → GPTBlock × 4 → Root1``"""
    runs: list[list[Any]] = []
    for call in opened.sharded.graph.calls:
        if runs and runs[-1][0] == call.type:
            runs[-1][1] += 1
        else:
            runs.append([call.type, 1])
    return " → ".join(plain(name) + (f" × {count}" if count > 1 else "") for name, count in runs)


def _draw_panel(axes: Any, opened: Anatomy, type_name: str, lines: int) -> None:
    planned = opened.types[type_name]
    segment = next(each for each in opened.sharded.graph.types if each.name == type_name)
    count = opened.counts[type_name]
    axes.set(xlim=(0, 1), ylim=(lines + 0.1, -0.7))
    axes.axis("off")
    axes.set_title(plain(type_name) + (f" × {count}" if count > 1 else ""), fontsize=11, fontweight="bold")
    line_of = {name: position for position, name in enumerate(segment.inputs)}
    for name, line in line_of.items():
        _draw_box(axes, line, plain(name), "white", _shape(segment.values[name].shape), is_input=True)
    parameters = {parameter.value: parameter.path for parameter in segment.parameters}
    for position, operator in enumerate(planned.operators, len(segment.inputs)):
        for name in dict.fromkeys(value.name for value in operator.call.operands):
            if name in line_of:
                _draw_arc(axes, line_of[name], position)
        line_of.update({name: position for name in operator.call.operator.results if name is not None})
        color = FAMILY_COLORS.get(family_of(operator.call), OTHER_FAMILY_COLOR)
        _draw_box(axes, position, plain(operator.name), color, _remark(operator, parameters))


def _remark(operator: PlannedOperator, parameters: dict[str, str]) -> str:
    """The shape of the result, and the parameters that the operator reads."""
    result = next((value for value in operator.call.results if value is not None), None)
    read = [_tail(parameters[value.name]) for value in operator.call.operands if value.name in parameters]
    shape = _shape(result.shape) if result is not None else ""
    return shape + ("   " + plain(", ".join(read)) if read else "")


def _tail(path: str) -> str:
    """The last module and the parameter: ``q.weight``."""
    return ".".join(path.split(".")[-2:])


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _draw_box(axes: Any, line: int, name: str, color: str, remark: str, *, is_input: bool = False) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.02"
    box = FancyBboxPatch(
        (BOX_LEFT, line - 0.38),
        BOX_WIDTH,
        0.76,
        boxstyle=style,
        mutation_aspect=8,
        facecolor=color,
        edgecolor="#777777",
        linewidth=0.7,
        linestyle="--" if is_input else "-",
    )
    axes.add_patch(box)
    shown = _shortened(name, NAME_LENGTH), _shortened(remark, REMARK_LENGTH)
    inside = axes.text(
        BOX_LEFT + BOX_WIDTH / 2, line, shown[0], ha="center", va="center", fontsize=8, color=INK
    )
    beside = axes.text(BOX_LEFT + BOX_WIDTH + 0.02, line, shown[1], va="center", fontsize=7, color="#555555")
    for text in (inside, beside):
        text.set_in_layout(False)


def _draw_arc(axes: Any, start: int, end: int) -> None:
    """From a line to a later one; the longer the way, the further out."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if end == start + 1:
        points, codes = (
            [(BOX_LEFT + 0.05, start + 0.38), (BOX_LEFT + 0.05, end - 0.38)],
            [Path.MOVETO, Path.LINETO],
        )
    else:
        reach = BOX_LEFT - ARC_WIDTH * min(1.0, 0.15 + (end - start) / 14)
        points = [(BOX_LEFT, start), (reach, start), (reach, end), (BOX_LEFT, end)]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    axes.add_patch(PathPatch(Path(points, codes), facecolor="none", edgecolor="#777777", linewidth=0.9))
