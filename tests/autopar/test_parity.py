"""A parallel module computes what the plain one does: loss, gradients, parameters after AdamW; float32, gloo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod

import pytest

from autopar.plan.files import format_plan
from autopar.plan.schema import Plan
from autopar.planner.pins import parse_pins
from tests.autopar.parity import MODELS, WAYS, Case, all_cases, case_plan, measure, worst
from tests.gloo_pool import GlooPool

LOSS_AND_GRADIENT_TOLERANCE = 1e-5
PARAMETER_TOLERANCE = 1e-4

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, GlooPool]]:
    with GlooPool(2) as two, GlooPool(4) as four:
        yield {2: two, 4: four}


def _marked(cases: list[Case]) -> list[object]:
    """Each way with two models, another pair each time, runs always; the rest is marked slow."""
    models, ways = list(MODELS), [str(Case("", **way)) for way in WAYS]
    marked: list[object] = []
    for case in cases:
        way, model = ways.index(str(Case("", **_way_of(case)))), models.index(case.model)
        is_quick = (model - way) % len(models) in (0, 3)
        marked.append(pytest.param(case, id=str(case), marks=[] if is_quick else [pytest.mark.slow]))
    return marked


def _way_of(case: Case) -> dict[str, object]:
    return {name: getattr(case, name) for name in ("cluster", "pins", "force", "batch", "uneven", "axes")}


@pytest.mark.parametrize("case", _marked(all_cases()))
def test_parallel_training_equals_plain_training(case: Case, pools: dict[int, GlooPool]) -> None:
    plan = case_plan(case)
    _check_mesh(case, plan)
    errors = worst(pools[case.world].run(measure, case, format_plan(plan)))
    assert errors.loss <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.gradient <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.parameter <= PARAMETER_TOLERANCE, errors


def _check_mesh(case: Case, plan: Plan) -> None:
    """The plan is the one that was asked for."""
    mesh = {axis.axis: axis.size for axis in plan.mesh}
    assert mesh == dict(parse_pins(case.pins).sizes) or not case.pins
    assert prod(mesh.values()) == case.world
    assert len(mesh) == (case.axes or len(mesh))


@pytest.mark.parametrize(
    ("force", "target", "wanted"),
    [
        ("sequence", "aten.layer_norm.default", "tp:d1"),
        ("vocabulary", "aten.cross_entropy_loss.default", "tp:v"),
        ("vocabulary", "aten.embedding.default", "tp:v"),
        ("rows", "aten.linear.default", "tp:i"),
        ("columns", "aten.linear.default", "tp:o"),
    ],
)
def test_forced_strategies_are_in_the_plan(force: str, target: str, wanted: str) -> None:
    plan = case_plan(Case("gpt", "cpu:4", "tp=4", force))
    calls = [each for segment in plan.segments for each in segment.operators if each.call == target]
    assert calls
    assert {each.strategy for each in calls} == {wanted}


EDITS = {
    "norms by sequence": {"aten.layer_norm.default": "tp:d1"},
    "everything but attention by batch": {
        "aten.layer_norm.default": "tp:d0",
        "aten.linear.default": "tp:…2",
        "aten.gelu.default": "tp:d0",
    },
    "nothing sharded": {"*": ""},
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=list(EDITS))
def test_a_plan_edited_by_hand_trains_alike(edits: dict[str, str], pools: dict[int, GlooPool]) -> None:
    case = Case("gpt", "cpu:2", "tp=2", "columns")
    plan = json.loads(format_plan(case_plan(case)))
    for segment in plan["segments"]:
        for operator in segment["operators"]:
            operator["strategy"] = edits.get(operator["call"], edits.get("*", operator["strategy"]))
    errors = worst(pools[case.world].run(measure, case, json.dumps(plan)))
    assert errors.loss <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.gradient <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.parameter <= PARAMETER_TOLERANCE, errors
