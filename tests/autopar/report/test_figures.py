"""Figures: each draws every plan, and what they count adds up."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

import autopar.report
from autopar.plan.schema import Plan
from autopar.report import (
    draw_candidates,
    draw_communication,
    draw_layouts,
    draw_memory,
    draw_segments,
    draw_strategies,
    summary,
)
from autopar.report.anatomy import ROLES, anatomy
from autopar.report.candidates import priced_candidates
from autopar.report.canvas import COLLECTIVE_COLORS, MEMORY_COLORS, ROLE_COLORS
from autopar.report.communication import exchanges
from autopar.report.layouts_figure import _drawn, _pieces, _telling
from autopar.report.text import MEMORY_CATEGORIES
from tests.autopar.cli.command import small_plan

MESHES = {
    "one axis": ("cpu:2", "tp=2"),
    "two axes": ("cpu:4", "dp_shard=2,tp=2"),
    "data": ("cpu:2", "dp_replicate=2"),
    "context": ("cpu:4", "cp=2,tp=2"),
    "one device": ("cpu:1", ""),
}


@pytest.fixture(scope="module", params=MESHES)
def plan(request: pytest.FixtureRequest) -> Plan:
    cluster, pins = MESHES[request.param]
    return small_plan(cluster=cluster, pins=pins)


@pytest.mark.parametrize(
    "draw", [draw_communication, draw_layouts, draw_memory, draw_segments, draw_strategies]
)
def test_every_figure_draws_every_plan(plan: Plan, draw: Callable[[Plan], Any]) -> None:
    pytest.importorskip("matplotlib")
    figure = draw(plan)
    figure.canvas.draw()
    assert figure.axes


def test_candidates_of_every_priced_operator(plan: Plan) -> None:
    pytest.importorskip("matplotlib")
    assert draw_candidates(plan, "GPTBlock.up_product").axes
    with pytest.raises(KeyError, match="up_product"):
        draw_candidates(plan, "GPTBlock.absent")
    with pytest.raises(KeyError, match="GPTBlock"):
        draw_candidates(plan, "Absent.up_product")


def test_no_single_change_of_strategy_beats_a_plan_that_the_search_found() -> None:
    opened = anatomy(small_plan(cluster="cpu:4", pins=""))
    for type_name, planned in opened.types.items():
        for operator in planned.operators:
            found = priced_candidates(opened, type_name, operator.name)
            assert [each.step_change_s for each in found if each.is_chosen] == [pytest.approx(0, abs=1e-12)]
            assert min(each.step_change_s for each in found) > -1e-9


def test_exchanges_add_up_to_the_plans_seconds(plan: Plan) -> None:
    opened = anatomy(plan)
    found = exchanges(opened)
    realized = opened.realized
    assert sum(each.seconds for each in found) == pytest.approx(realized.conversion_s + realized.traffic_s)
    for each in found:
        hops_s = each.count * sum(hop.forward_s + hop.backward_s for hop in each.hops)
        assert hops_s == pytest.approx(each.seconds)


def test_every_rank_holds_its_share_of_every_tensor(plan: Plan) -> None:
    """Pieces tile the matrix, and a rank holds as much as its local shape says."""
    opened = anatomy(plan)
    for drawn in _telling(opened):
        pieces = _pieces(opened, drawn)
        assert sum(height * width for _, _, height, width in pieces) == pytest.approx(1)
        ways = 1
        for placement, axis in zip(drawn.layout, opened.sharded.axes, strict=True):
            ways *= axis.size if placement.is_shard else 1
        held: dict[int, float] = {}
        for (_, _, height, width), ranks in pieces.items():
            for rank in ranks:
                held[rank] = held.get(rank, 0.0) + height * width
        assert list(held.values()) == pytest.approx([1 / ways] * len(held))


def test_an_unknown_tensor_is_named(plan: Plan) -> None:
    with pytest.raises(KeyError, match=r"GPTBlock\.absent"):
        _drawn(anatomy(plan), "GPTBlock", "absent")


def test_text_tells_every_operator_parameter_and_category(plan: Plan) -> None:
    console = Console(file=io.StringIO(), width=300)
    console.print(summary(plan, is_full=True))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for segment in plan.segments:
        assert segment.name in text
        assert all(operator.name in text for operator in segment.operators)
    assert "layers.*.feed_forward.up.weight" in text
    memory = text.partition("Memory of one device")[2].partition("The search")[0]
    for field, label in MEMORY_CATEGORIES.items():
        assert (label in memory) == bool(getattr(plan.predicted.memory[0], field))


def test_everything_that_is_drawn_has_a_colour() -> None:
    assert set(ROLE_COLORS) == set(ROLES)
    assert set(MEMORY_COLORS) == set(MEMORY_CATEGORIES)
    assert {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "slice"} <= set(COLLECTIVE_COLORS)


def test_public_names_are_sorted() -> None:
    assert autopar.report.__all__ == sorted(autopar.report.__all__)
