"""What a memory limit does to a plan."""

from __future__ import annotations

import pytest

from autopar.errors import InfeasiblePlanError
from autopar.planner.search import Found
from tests.autopar.planner.planning_cases import found

MODEL = "gpt:layers=2,hidden=128,heads=4,vocab=512"


def _peak(answer: Found) -> int:
    return answer.best.peak_bytes


def _data_kinds(answer: Found) -> set[str]:
    return {axis.kind for axis in answer.best.realized.sharded.axes}


def test_parameters_are_sharded_at_rest_when_replicas_do_not_fit() -> None:
    free = found(MODEL, "cpu:2", "tp=1,pp=1")
    assert _data_kinds(free) == {"replicate"}
    tight = found(MODEL, "cpu:2", "tp=1,pp=1", int(0.8 * _peak(free)))
    assert _data_kinds(tight) == {"shard"}
    assert _peak(tight) < _peak(free)
    assert tight.best.step_s >= free.best.step_s


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_a_plan_fits_its_limit(share: float) -> None:
    free = found(MODEL, "cpu:4")
    limit = int(share * _peak(free))
    tight = found(MODEL, "cpu:4", "", limit)
    assert _peak(tight) <= limit
    assert tight.best.step_s >= free.best.step_s * (1 - 1e-9)
    for tried in tight.runner_ups:
        assert tried.peak_bytes <= limit


def test_tighter_limits_are_never_faster() -> None:
    free = found(MODEL, "cpu:2")
    steps = []
    for share in (1.0, 0.9, 0.8, 0.7):
        try:
            steps.append(found(MODEL, "cpu:2", "", int(share * _peak(free))).best.step_s)
        except InfeasiblePlanError:
            break
    assert len(steps) >= 2
    assert steps == sorted(steps)


def test_what_cannot_fit_says_what_it_needs_and_what_holds_it() -> None:
    with pytest.raises(InfeasiblePlanError) as raised:
        found(MODEL, "cpu:2", "", 10**6)
    message = str(raised.value)
    assert "no plan fits 1.0 MB per device" in message
    assert "alone hold" in message
    assert "more devices" in message
