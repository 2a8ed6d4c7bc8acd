"""However a step is run (microbatches, recomputation, ZeRO levels, stages, schedules), it trains what the plain
module trains: loss, gradients, parameters after AdamW; float32, gloo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import pytest

from autopar.plan.files import format_plan
from autopar.plan.schema import Plan
from autopar.planner.pins import parse_pins
from tests.autopar.parity import Case, case_plan, measure, worst
from tests.autopar.parity_executions import execution_cases, pipeline_cases
from tests.autopar.test_parity import LOSS_AND_GRADIENT_TOLERANCE, PARAMETER_TOLERANCE
from tests.gloo_pool import GlooPool

pytest.importorskip("transformers")

Pools = dict[int, GlooPool]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    with GlooPool(2) as two, GlooPool(4) as four, GlooPool(8) as eight:
        yield {2: two, 4: four, 8: eight}


def _marked(cases: list[Case]) -> list[object]:
    """Each way with one model, another one each time, runs always (of those on eight processes every third); the
    rest is marked slow."""
    by_way: dict[str, list[Case]] = {}
    for case in cases:
        by_way.setdefault(str(replace(case, model="")), []).append(case)
    chosen = [each[place % len(each)] for place, each in enumerate(by_way.values())]
    quick = [case for case in chosen if case.world < 8] + [case for case in chosen if case.world == 8][::3]
    return [
        pytest.param(case, id=str(case), marks=[] if case in quick else pytest.mark.slow) for case in cases
    ]


@pytest.mark.parametrize("case", _marked([*execution_cases(), *pipeline_cases()]))
def test_training_equals_plain_training(case: Case, pools: Pools) -> None:
    plan = case_plan(case)
    check_as_pinned(case, plan)
    errors = worst(pools[case.world].run(measure, case, format_plan(plan)))
    assert errors.loss <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.gradient <= LOSS_AND_GRADIENT_TOLERANCE, errors
    assert errors.parameter <= PARAMETER_TOLERANCE, errors


def check_as_pinned(case: Case, plan: Plan) -> None:
    """The plan is the one that was asked for."""
    pins = parse_pins(case.pins)
    mesh = {axis.axis: axis.size for axis in plan.mesh}
    assert mesh == {**({"pp": pins.pp} if pins.pp else {}), **pins.sizes}
    assert pins.schedule in (None, plan.schedule.name)
    assert len(plan.stages) == (pins.pp or 1) * (pins.chunks or len(plan.stages) // (pins.pp or 1))
    assert {stage.recompute for stage in plan.stages} == {pins.recompute} or not pins.recompute
    assert {stage.zero for stage in plan.stages} == {pins.zero} or pins.zero is None
    slices = prod(size for axis, size in pins.sizes.items() if axis.startswith("dp_"))
    assert pins.microbatch is not None
    assert plan.schedule.microbatches * pins.microbatch * slices == case.batch
