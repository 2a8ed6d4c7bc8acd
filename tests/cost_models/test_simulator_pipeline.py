"""A played pipeline is as long, as idle and as full as closed forms say, and slower with all that they leave out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.schedules import SCHEDULES, bubble_fraction, microbatches_in_flight, pipeline_s
from cost_models.simulator import simulate
from cost_models.simulator_pipeline import Pipeline, StageCost, pipeline_actions
from cost_models.timeline import Timeline

THIRDS = StageCost(1.0, 1.0, 1.0, weight_activation_bytes=1)


def played(cost: StageCost, pipeline: Pipeline, chunks: int = 1, slowdown: float = 1.0) -> Timeline:
    return simulate(pipeline_actions([cost] * pipeline.ranks * chunks, pipeline), overlap_slowdown=slowdown)


@pytest.mark.parametrize(
    ("schedule", "chunks"),
    [
        ("gpipe", 1),
        ("1f1b", 1),
        ("interleaved", 2),
        ("interleaved", 4),
        ("zero-bubble", 1),
        ("zero-bubble", 2),
    ],
)
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 4), (2, 4), (4, 4), (4, 16), (8, 32)])
def test_closed_forms_are_what_is_played(schedule: str, chunks: int, ranks: int, microbatches: int) -> None:
    timeline = played(THIRDS, Pipeline(schedule, ranks, microbatches), chunks)
    sizes = {"microbatches": microbatches, "chunks": chunks}
    assert timeline.step_s == pytest.approx(pipeline_s(schedule, [3.0 * chunks] * ranks, **sizes))
    expected = bubble_fraction(schedule, stages=ranks, **sizes)
    assert timeline.bubble_fraction == pytest.approx(expected, abs=1e-12)
    for rank in range(ranks):
        form = microbatches_in_flight(schedule, stages=ranks, stage=rank, **sizes)
        assert timeline.peak_bytes(rank) == form * chunks


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 1), (4, 2), (4, 8), (6, 24)])
def test_plain_pipelines_idle_by_s_minus_one_over_s_minus_one_plus_m(
    schedule: str, ranks: int, microbatches: int
) -> None:
    timeline = played(THIRDS, Pipeline(schedule, ranks, microbatches))
    assert timeline.bubble_fraction == pytest.approx((ranks - 1) / (ranks - 1 + microbatches))


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 1), (4, 3), (4, 12)])
def test_1f1b_holds_one_microbatch_less_on_each_rank(ranks: int, microbatches: int) -> None:
    timeline = played(THIRDS, Pipeline("1f1b", ranks, microbatches))
    assert [timeline.peak_bytes(rank) for rank in range(ranks)] == [
        min(ranks - rank, microbatches) for rank in range(ranks)
    ]


def test_activations_that_weights_do_not_need_go_with_the_backward_of_inputs() -> None:
    cost = StageCost(1.0, 1.0, 1.0, activation_bytes=10, weight_activation_bytes=1)
    timeline = played(cost, Pipeline("zero-bubble", 4, 8))
    assert [timeline.peak_bytes(rank) for rank in range(4)] == [44, 34, 24, 14]


def test_a_slow_first_stage_hides_the_filling_that_the_closed_form_adds() -> None:
    stages = [StageCost(2.0, 1.0, 1.0), StageCost(1.0, 0.5, 0.5)]
    timeline = simulate(pipeline_actions(stages, Pipeline("1f1b", 2, 4)))
    assert timeline.step_s == timeline.busy_s(0) == 16.0
    assert pipeline_s("1f1b", [4.0, 2.0], microbatches=4) == 18.0


def test_transfers_show_at_every_boundary_of_the_filling() -> None:
    cost = replace(THIRDS, send_forward_s=0.25, send_backward_s=0.5)
    for schedule in ("gpipe", "1f1b"):
        timeline = played(cost, Pipeline(schedule, 4, 1))
        assert timeline.step_s == pytest.approx(4 * 3.0 + 3 * 0.25 + 3 * 0.5)
        assert timeline.exposed_communication_s(1) == pytest.approx(2 * 0.25 + 2 * 0.5)
    assert played(cost, Pipeline("gpipe", 4, 8)).step_s == pytest.approx(3 * 8 + 3 * 3 + 3 * 0.75)


def test_gathers_reductions_and_the_optimizer_are_played() -> None:
    cost = replace(THIRDS, gather_s=0.5, gathered_bytes=100, reduce_s=2.0, optimizer_s=1.0)
    timeline = played(cost, Pipeline("1f1b", 2, 4, gathers=True))
    plain_s = pipeline_s("1f1b", [3.0] * 2, microbatches=4)
    assert timeline.step_s == pytest.approx(0.5 + plain_s + 2.0 + 1.0)
    assert timeline.exposed_communication_s(0) == pytest.approx(2.5)
    assert timeline.peak_bytes(0) == 102
    assert timeline.memory[0][-1][1] == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    schedule=st.sampled_from(SCHEDULES),
    ranks=st.integers(1, 4),
    rounds=st.integers(1, 3),
    seconds=st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3),
    transfer_s=st.floats(0.0, 2.0),
    gather_s=st.floats(0.0, 2.0),
    slowdown=st.sampled_from([1.0, 1.3]),
)
def test_every_schedule_can_be_played_and_frees_what_it_held(
    schedule: str,
    ranks: int,
    rounds: int,
    seconds: list[float],
    transfer_s: float,
    gather_s: float,
    slowdown: float,
) -> None:
    chunks = 2 if schedule in ("interleaved", "zero-bubble") else 1
    cost = StageCost(
        *seconds,
        activation_bytes=3,
        weight_activation_bytes=4,
        send_forward_s=transfer_s,
        send_backward_s=transfer_s,
        gather_s=gather_s,
        gathered_bytes=5,
        reduce_s=gather_s,
    )
    pipeline = Pipeline(schedule, ranks, rounds * ranks, gathers=True)
    timeline = played(cost, pipeline, chunks, slowdown)
    assert all(levels[-1][1] == 0 for levels in timeline.memory)
    assert all(min(held for _, held in levels) == 0 for levels in timeline.memory)
    assert timeline.step_s >= chunks * rounds * ranks * sum(seconds) - 1e-9
    assert 0.0 <= timeline.bubble_fraction < 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sixteen_ranks_and_128_microbatches_are_played_in_a_second(schedule: str) -> None:
    cost = replace(THIRDS, send_forward_s=0.1, send_backward_s=0.1, gather_s=0.2, reduce_s=0.3)
    taken_s = []
    for _ in range(3):
        start_s = time.process_time()
        played(cost, Pipeline(schedule, 16, 128, gathers=True), slowdown=1.1)
        taken_s.append(time.process_time() - start_s)
    assert min(taken_s) < 1.0  # 0.3 s on a core of its own


def test_stages_that_do_not_lie_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="3 stages do not lie equally on 2 ranks"):
        pipeline_actions([THIRDS] * 3, Pipeline("1f1b", 2, 2))
