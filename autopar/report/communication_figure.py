"""Figure: where a step communicates: on the way through each segment, and all exchanges by seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autopar.plan.schema import Plan
from autopar.report.anatomy import Anatomy, anatomy
from autopar.report.canvas import COLLECTIVE_COLORS, INK, PALE, add_legend, new_figure
from autopar.report.communication import Exchange, exchanges
from autopar.report.units import plain, show_bytes, show_seconds

__all__ = ["draw_communication"]

LINE_HEIGHT_IN, LANE_HEIGHT_IN = 0.3, 0.62
COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class _Span:
    """Something that one segment does after the other, once."""

    kind: str
    """``compute`` or a collective."""
    seconds: float


def draw_communication(plan: Plan) -> Any:
    """Above, one run through every segment type, forward and backward; below, all exchanges of a step."""
    opened = anatomy(plan)
    found = exchanges(opened)
    types = list(opened.types)
    heights = [LANE_HEIGHT_IN * 2 * len(types) + 0.5, LINE_HEIGHT_IN * max(1, len(found)) + 0.5]
    figure = new_figure(11, sum(heights) + 1.6)
    figure.suptitle(_title(opened, found), fontsize=13)
    lanes, bars = figure.subplots(2, 1, height_ratios=heights)
    _draw_lanes(lanes, opened, found, types)
    _draw_bars(bars, found)
    kinds = {hop.forward for each in found for hop in each.hops} | {h.backward for e in found for h in e.hops}
    legend = {name: color for name, color in COLLECTIVE_COLORS.items() if name in kinds}
    add_legend(figure, {COMPUTE: PALE, **legend}, columns=6)
    return figure


def _title(opened: Anatomy, found: Sequence[Exchange]) -> str:
    sent = show_bytes(sum(each.sent_bytes for each in found))
    seconds = show_seconds(sum(each.seconds for each in found))
    step = show_seconds(opened.plan.predicted.step_time_s)
    return f"Communication: {sent} and {seconds} in a step of {step}"


def _draw_lanes(axes: Any, opened: Anatomy, found: Sequence[Exchange], types: list[str]) -> None:
    longest, labels = 0.0, []
    for position, type_name in enumerate(types):
        forward, backward = _spans(opened, found, type_name)
        count = opened.counts[type_name]
        name = plain(type_name) + (f" × {count}" if count > 1 else "")
        labels += [f"{name}\nforward", f"{name}\nbackward"]
        for lane, spans in ((2 * position, forward), (2 * position + 1, backward)):
            longest = max(longest, _draw_lane(axes, lane, spans))
    axes.set(xlim=(0, 1.01 * max(longest, 1e-12)), ylim=(len(labels) - 0.4, -0.6))
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.xaxis.set_major_formatter(lambda seconds, _: show_seconds(seconds))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        "one run through each segment type: compute, and what it waits for", fontsize=10, loc="left"
    )


def _spans(opened: Anatomy, found: Sequence[Exchange], type_name: str) -> tuple[list[_Span], list[_Span]]:
    """Forward in order, and backward in reverse: each operator, then the exchanges of what it made."""
    of_tensor = {each.tensor: each for each in found if each.segment == type_name}
    segment = next(each for each in opened.sharded.graph.types if each.name == type_name)
    forward: list[_Span] = []
    backward: list[_Span] = []
    for name in segment.inputs:
        _add_hops(of_tensor.get(name), forward, backward)
    for operator in segment.operators:
        price = opened.realized.operators[type_name, operator.name]
        forward.append(_Span(COMPUTE, price.forward_s))
        backward.append(_Span(COMPUTE, price.backward_s))
        for name in filter(None, operator.results):
            _add_hops(of_tensor.get(name), forward, backward)
    return forward, backward[::-1]


def _add_hops(exchange: Exchange | None, forward: list[_Span], backward: list[_Span]) -> None:
    for hop in exchange.hops if exchange is not None else ():
        if hop.forward != "nothing":
            forward.append(_Span(hop.forward, hop.forward_s))
        if hop.backward != "nothing":
            backward.append(_Span(hop.backward, hop.backward_s))


def _draw_lane(axes: Any, lane: int, spans: list[_Span]) -> float:
    """Draws one after the other; returns when the last one ends."""
    now_s = 0.0
    for span in spans:
        color = COLLECTIVE_COLORS.get(span.kind, PALE)
        axes.barh(lane, span.seconds, left=now_s, height=0.62, color=color, edgecolor="white", linewidth=0.6)
        now_s += span.seconds
    return now_s


def _draw_bars(axes: Any, found: Sequence[Exchange]) -> None:
    for line, exchange in enumerate(found):
        left = 0.0
        for seconds, kind in _parts(exchange):
            axes.barh(line, seconds, left=left, height=0.66, color=COLLECTIVE_COLORS[kind])
            left += seconds
        axes.text(left, line, f"  {_remark(exchange)}", va="center", fontsize=8, color=INK)
    longest = max((each.seconds for each in found), default=1.0)
    axes.set(xlim=(0, 1.9 * longest), ylim=(len(found) - 0.4, -0.6))
    axes.set_yticks(range(len(found)), [_name(each) for each in found], fontsize=8)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= 1.05 * longest]
    axes.set_xticks(ticks, [show_seconds(tick) for tick in ticks])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("a whole step, before any of it is hidden behind compute", fontsize=10, loc="left")


def _parts(exchange: Exchange) -> list[tuple[float, str]]:
    """Seconds of a step by collective, forward then backward."""
    forward = [(exchange.count * hop.forward_s, hop.forward) for hop in exchange.hops]
    again = [(exchange.count * hop.again_s, hop.forward) for hop in exchange.hops if hop.again_s]
    backward = [(exchange.count * hop.backward_s, hop.backward) for hop in reversed(exchange.hops)]
    return [(seconds, kind) for seconds, kind in (*forward, *again, *backward) if kind != "nothing"]


def _name(exchange: Exchange) -> str:
    return plain(f"{exchange.segment}.{exchange.tensor}" if exchange.segment else exchange.tensor)


def _remark(exchange: Exchange) -> str:
    times = f" in {exchange.count} times" if exchange.count > 1 else ""
    sent = show_bytes(exchange.sent_bytes) if exchange.sent_bytes else "nothing sent"
    return f"{exchange.change};  {sent}{times}, {show_seconds(exchange.seconds)}"
