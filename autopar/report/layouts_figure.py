"""Figure: tensors as matrices cut among the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, log2, prod
from typing import Any

from autopar.capture.graph import Value
from autopar.plan.schema import Plan
from autopar.report.anatomy import Anatomy, anatomy
from autopar.report.canvas import INK, RANK_COLORS, new_figure, text_color
from autopar.report.units import plain
from autopar.shardings.placement import Layout, Placement, format_layout, shard

__all__ = ["draw_layouts"]

COLUMNS = 3
DRAWN_BY_DEFAULT = 9
MOST_DRAWN = 2**16
"""Rows or columns from which on a matrix is drawn no larger."""
PIECES_LABELLED = 16
"""Pieces of a matrix that are numbered; more are only coloured."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A tensor and where it lies."""

    title: str
    value: Value
    layout: Layout
    is_parameter: bool


def draw_layouts(plan: Plan, tensors: Sequence[str] = ()) -> Any:
    """Tensors on the mesh: which rank holds which rows and columns.

    ``tensors`` are names such as ``GPTBlock.x`` or ``GPTBlock.attention_q_weight``; without any, a matrix and
    one activation of every layout that occurs in the segment type on which most time is spent. Parameters are
    drawn at rest, activations as they are made. Raises KeyError for a name that the plan does not have.
    """
    opened = anatomy(plan)
    drawn = [_drawn(opened, *name.split(".", 1)) for name in tensors] or _telling(opened)
    rows = ceil(len(drawn) / COLUMNS)
    figure = new_figure(3.9 * min(COLUMNS, max(1, len(drawn))), 3.1 * rows + 0.9)
    mesh = " × ".join(f"{axis.name} {axis.size}" for axis in opened.sharded.axes) or "one device"
    figure.suptitle(f"Who holds what on {mesh}: numbers are ranks", fontsize=13)
    panels = figure.subplots(max(1, rows), min(COLUMNS, max(1, len(drawn))), squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, each in zip(panels, drawn, strict=False):
        _draw_matrix(axes, opened, each)
    return figure


def _telling(opened: Anatomy) -> list[_Drawn]:
    """Around products with a weight: the first matrix and the first activation of each layout."""
    seconds: dict[str, float] = {}
    for (type_name, _), price in opened.realized.operators.items():
        seconds[type_name] = seconds.get(type_name, 0.0) + opened.counts[type_name] * price.seconds
    type_name = max(seconds, key=lambda name: seconds[name])
    found: dict[tuple[bool, str], _Drawn] = {}
    for operator in opened.types[type_name].operators:
        reads = operator.call.operands
        if any(len(reads[place].shape) >= 2 for place in operator.parameters):
            for value in (*reads, *operator.call.results):
                if value is not None and len(value.shape) >= 2:
                    drawn = _drawn(opened, type_name, value.name)
                    found.setdefault((drawn.is_parameter, str(drawn.layout)), drawn)
    return list(found.values())[:DRAWN_BY_DEFAULT]


def _drawn(opened: Anatomy, type_name: str, name: str) -> _Drawn:
    segment = next((each for each in opened.sharded.graph.types if each.name == type_name), None)
    if segment is None or name not in segment.values:
        raise KeyError(f"the plan has no tensor {type_name}.{name}: write SegmentType.value")
    value = segment.values[name]
    for parameter in segment.parameters:
        if parameter.value == name:
            return _Drawn(parameter.path, value, _at_rest(opened, type_name, parameter.path), True)
    return _Drawn(name, value, _as_made(opened, type_name, name), False)


def _at_rest(opened: Anatomy, type_name: str, path: str) -> Layout:
    """Model axes as the plan says; along a data axis that shards parameters, cut by rows (FSDP2)."""
    module = next(call.module for call in opened.sharded.graph.calls if call.type == type_name)
    name = f"{module}.{path}" if module else path
    aliases = {p.name: p.alias_of or p.name for p in opened.sharded.graph.parameters}
    layout = opened.sharded.parameters[aliases.get(name, name)]
    return tuple(
        shard(0) if axis.kind == "shard" else placement
        for axis, placement in zip(opened.sharded.axes, layout, strict=True)
    )


def _as_made(opened: Anatomy, type_name: str, name: str) -> Layout:
    if (type_name, name) in opened.sharded.boundaries:
        return opened.sharded.boundaries[type_name, name]
    for operator in opened.types[type_name].operators:
        if name in operator.call.operator.results:
            place = operator.call.operator.results.index(name)
            return opened.sharded.strategies[type_name, operator.name].results[place]
    raise KeyError(f"{type_name}.{name} is a constant: every rank holds it")


def _draw_matrix(axes: Any, opened: Anatomy, drawn: _Drawn) -> None:
    from matplotlib.patches import Rectangle

    *rows, columns = drawn.value.shape
    width, height = (0.35 + 0.1 * log2(min(MOST_DRAWN, max(2, size))) for size in (columns, prod(rows)))
    is_partial = any(placement.kind == "P" for placement in drawn.layout)
    pieces = _pieces(opened, drawn)
    for (top, left, tall, wide), ranks in pieces.items():
        color = RANK_COLORS[ranks[0] % len(RANK_COLORS)]
        corner = (left * width, (1 - top - tall) * height)
        piece = Rectangle(
            corner,
            wide * width,
            tall * height,
            facecolor=color,
            edgecolor="white",
            linewidth=1.5,
            hatch="//" if is_partial else None,
        )
        axes.add_patch(piece)
        if len(pieces) <= PIECES_LABELLED:
            middle = (corner[0] + wide * width / 2, corner[1] + tall * height / 2)
            axes.text(*middle, _listed(ranks), ha="center", va="center", fontsize=9, color=text_color(color))
    axes.set(xlim=(-0.02, width + 0.02), ylim=(-0.24, height + 0.02), aspect="equal")
    axes.set_title(plain(drawn.title), fontsize=10, fontweight="bold")
    text = format_layout(drawn.layout, opened.sharded.axis_names)
    note = "\npartial sums: to be added up" if is_partial else ""
    axes.text(
        width / 2,
        -0.03,
        f"{_shape(drawn.value.shape)}\n{text}{note}",
        ha="center",
        va="top",
        fontsize=8,
        color=INK,
    )


def _shape(shape: tuple[int, ...]) -> str:
    """``[8 × 128] × 64``: rows in brackets where several dims make them."""
    *rows, columns = shape
    text = " × ".join(map(str, rows))
    return " × ".join(filter(None, (f"[{text}]" if len(rows) > 1 else text, str(columns))))


Piece = tuple[float, float, float, float]
"""Top, left, height and width, as shares of the matrix."""


def _pieces(opened: Anatomy, drawn: _Drawn) -> dict[Piece, list[int]]:
    """Every distinct piece and the ranks that hold it. Columns are the last dim, rows all others, nested."""
    found: dict[Piece, list[int]] = {}
    *rows, columns = range(len(drawn.value.shape))
    for rank, place in enumerate(product(*(range(size) for size in opened.prices.sizes))):
        cuts = [
            _Cut(placement, size, index)
            for placement, size, index in zip(drawn.layout, opened.prices.sizes, place, strict=True)
        ]
        if drawn.is_parameter:  # the data-parallel engine cuts what the other axes left
            kinds = [axis.is_data for axis in opened.sharded.axes]
            cuts = [cut for _, cut in sorted(zip(kinds, cuts, strict=True), key=lambda pair: pair[0])]
        for (top, height), (left, width) in product(_spans(cuts, rows), _spans(cuts, [columns])):
            found.setdefault((top, left, height, width), []).append(rank)
    return found


@dataclass(frozen=True, slots=True)
class _Cut:
    """One axis's placement, and the place of a rank on the axis."""

    placement: Placement
    size: int
    index: int


def _spans(cuts: list[_Cut], dims: list[int]) -> list[tuple[float, float]]:
    """(start, length) of a rank's parts of some dims, the first outermost; several where cut in blocks."""
    spans = [(0.0, 1.0)]
    for dim in dims:
        mine = [cut for cut in cuts if cut.placement.is_shard and cut.placement.dim == dim]
        done = 1
        for cut in sorted(mine, key=lambda cut: cut.placement.blocks):
            blocks = max(1, cut.placement.blocks // done)
            spans = [
                (start + length * (block + cut.index / cut.size) / blocks, length / (blocks * cut.size))
                for start, length in spans
                for block in range(blocks)
            ]
            done = cut.placement.blocks * cut.size
    return spans


def _listed(ranks: list[int]) -> str:
    """``0, 2`` or ``0 … 7``."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]} … {ranks[-1]}"
