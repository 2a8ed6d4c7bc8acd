"""A step without stages: what is gathered and summed beside compute, what sticks out, what is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.simulator import simulate
from cost_models.simulator_blocks import Block, Part, Stage, Step, Unit, part_name, step_actions
from cost_models.simulator_pipeline import Pipeline, StageCost, pipeline_actions
from cost_models.timeline import Timeline

FORWARD_S, BACKWARD_S = 1.0, 2.0
UNIT = Unit(gather_s=0.5, gathered_bytes=100, reduce_s=0.75, slice_reduce_s=0.75, gradient_bytes=10)


def block(number: int) -> Block:
    return Block(
        f"b{number}",
        f"b{number}",
        (Part("f", FORWARD_S, allocates_bytes=1),),
        (Part("b", BACKWARD_S, frees_bytes=1, weights_share=0.5),),
    )


def step(blocks: int = 4, unit: Unit = UNIT, **choices: object) -> Step:
    return Step(
        (Stage(tuple(map(block, range(blocks)))),),
        {f"b{number}": unit for number in range(blocks)},
        optimizer_s=(0.25,),
        **choices,  # type: ignore[arg-type]
    )


def played(given_step: Step, slowdown: float = 1.0) -> Timeline:
    return simulate(step_actions(given_step), overlap_slowdown=slowdown)


def order(timeline: Timeline, kinds: tuple[str, ...]) -> list[str]:
    events = [event for event in timeline.ranks[0] if event.action.kind in kinds]
    return [event.action.name for event in events if event.action.seconds]


def test_blocks_run_forward_and_back_and_the_optimizer_last() -> None:
    timeline = played(step(2))
    assert order(timeline, ("F", "B", "OPTIMIZER")) == [
        "b0/f F0",
        "b1/f F0",
        "b1/b B0",
        "b0/b B0",
        "optimizer",
    ]
    assert part_name("b1", "b", "B", 0) == "b1/b B0"


def test_only_the_first_gather_and_the_last_sum_stick_out() -> None:
    timeline = played(step(4))
    assert timeline.step_s == pytest.approx(0.5 + 4 * 3.0 + 0.75 + 0.25)
    assert timeline.exposed_communication_s(0) == pytest.approx(0.5 + 0.75)
    assert timeline.bubble_s(0) == pytest.approx(0.0)


def test_without_overlap_everything_adds_up() -> None:
    timeline = played(step(4, overlaps=False))
    assert timeline.step_s == pytest.approx(4 * (3.0 + 2 * 0.5 + 0.75) + 0.25)
    assert timeline.exposed_communication_s(0) == pytest.approx(4 * (2 * 0.5 + 0.75))


def test_gathers_longer_than_compute_set_the_pace() -> None:
    timeline = played(step(4, replace(UNIT, gather_s=3.0, reduce_s=0.0)))
    assert timeline.busy_s(0, "data") == 8 * 3.0
    assert timeline.step_s == pytest.approx(8 * 3.0 + BACKWARD_S + 0.25)


def test_two_blocks_are_gathered_at_a_time() -> None:
    timeline = played(step(6, replace(UNIT, gradient_bytes=0)))
    assert timeline.peak_bytes(0) == 2 * 100 + 6
    assert timeline.memory[0][-1][1] == 0


def test_parameters_gathered_once_are_all_held() -> None:
    timeline = played(step(6, gathers_once=True, microbatches=3))
    gathers = order(timeline, ("UNSHARD",))
    assert gathers == [f"b{number} UNSHARD F0" for number in range(6)]
    assert timeline.peak_bytes(0) >= 600
    assert timeline.memory[0][-1][1] == 0


def test_what_is_kept_is_gathered_once_a_microbatch() -> None:
    timeline = played(step(2, replace(UNIT, is_kept=True), microbatches=2))
    assert len(order(timeline, ("UNSHARD",))) == 4


@pytest.mark.parametrize(("slice_reduce_s", "sums"), [(0.75, 6), (0.0, 2)])
def test_gradients_are_summed_with_every_microbatch_or_with_the_last(
    slice_reduce_s: float, sums: int
) -> None:
    unit = replace(UNIT, slice_reduce_s=slice_reduce_s)
    timeline = played(step(2, unit, microbatches=3))
    assert len(order(timeline, ("REDUCE_GRAD",))) == sums
    assert timeline.memory[0][-1][1] == 0


def test_a_unit_of_several_blocks_is_gathered_for_the_first_and_summed_after_the_last() -> None:
    parts = (Part("p", 1.0),)
    blocks = (
        Block("start", "root", parts, parts),
        Block("b", "b", parts, parts),
        Block("end", "root", parts, parts),
    )
    root = replace(UNIT, is_kept=True)
    timeline = played(Step((Stage(blocks),), {"root": root, "b": UNIT}))
    assert order(timeline, ("UNSHARD",)) == ["start UNSHARD F0", "b UNSHARD F0", "b UNSHARD B0"]
    assert order(timeline, ("REDUCE_GRAD",)) == ["b REDUCE_GRAD0", "root REDUCE_GRAD0"]


def staged(schedule: str, ranks: int, chunks: int, unit: Unit = UNIT, microbatches: int = 8) -> Step:
    """Two blocks a stage."""
    stages = tuple(
        Stage((block(2 * each), block(2 * each + 1)), 0.25, 0.25) for each in range(ranks * chunks)
    )
    units = {f"b{number}": unit for number in range(2 * len(stages))}
    return Step(stages, units, (0.25,) * ranks, microbatches, schedule)


@pytest.mark.parametrize(
    ("schedule", "chunks"),
    [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1), ("zero-bubble", 2)],
)
@pytest.mark.parametrize("ranks", [2, 4])
def test_blocks_on_stages_take_as_long_as_whole_stages(schedule: str, chunks: int, ranks: int) -> None:
    cost = StageCost(2 * FORWARD_S, BACKWARD_S, BACKWARD_S, 0, 2, send_forward_s=0.25, send_backward_s=0.25)
    whole = simulate(pipeline_actions([cost] * ranks * chunks, Pipeline(schedule, ranks, 8)))
    blocks = played(replace(staged(schedule, ranks, chunks, Unit()), optimizer_s=(0.0,) * ranks))
    assert blocks.step_s == pytest.approx(whole.step_s)
    for rank in range(ranks):
        assert blocks.busy_s(rank) == pytest.approx(whole.busy_s(rank))
        assert blocks.peak_bytes(rank) <= whole.peak_bytes(rank)


@pytest.mark.parametrize("gathers_once", [False, True])
@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1)])
def test_stages_gather_sum_and_free_what_they_hold(schedule: str, chunks: int, gathers_once: bool) -> None:
    timeline = played(replace(staged(schedule, 2, chunks), gathers_once=gathers_once))
    assert all(levels[-1][1] == 0 and min(held for _, held in levels) == 0 for levels in timeline.memory)
    gathers = order(timeline, ("UNSHARD",))
    passes = 1 if gathers_once else 8 * (3 if schedule == "zero-bubble" else 2)
    assert len(gathers) == 2 * chunks * passes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    blocks=st.integers(1, 5),
    microbatches=st.integers(1, 3),
    gather_s=st.floats(0.0, 4.0),
    reduce_s=st.floats(0.0, 4.0),
    gathers_once=st.booleans(),
    slowdown=st.sampled_from([1.0, 1.2]),
)
def test_overlap_never_costs_more_than_its_slowdown_and_frees_everything(
    blocks: int, microbatches: int, gather_s: float, reduce_s: float, gathers_once: bool, slowdown: float
) -> None:
    unit = replace(UNIT, gather_s=gather_s, reduce_s=reduce_s)
    choices = {"microbatches": microbatches, "gathers_once": gathers_once}
    apart = played(step(blocks, unit, overlaps=False, **choices))
    beside = played(step(blocks, unit, **choices), slowdown)
    assert apart.memory[0][-1][1] == beside.memory[0][-1][1] == 0
    assert beside.step_s <= slowdown * apart.step_s + 1e-9
    assert beside.step_s >= blocks * microbatches * (FORWARD_S + BACKWARD_S) + 0.25 - 1e-9
