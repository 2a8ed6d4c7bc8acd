"""Playing actions: nothing before its inputs, one thing at a time on a stream, and longer is never sooner."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.simulator import ScheduleError, simulate
from cost_models.timeline import COLLECTIVE, COMPUTE, DATA, Action, Event, Timeline
from tests.cost_models.random_actions import Ranks, lengthened, systems

SLOWDOWNS = st.sampled_from([1.0, 1.1, 1.5, 3.0])
ROUNDING = 1e-9


def times(timeline: Timeline) -> dict[str, Event]:
    return {event.action.name: event for events in timeline.ranks for event in events}


def longest_paths_s(ranks: Ranks) -> dict[str, float]:
    """When each action ends without slowdown: the longest way through needs, streams and partners."""
    before: dict[str, set[str]] = {}
    for actions in ranks:
        last: dict[str, str] = {}
        for action in actions:
            before[action.name] = {*action.needs, *filter(None, [last.get(action.stream)])}
            last[action.stream] = action.name
    every = {action.name: action for actions in ranks for action in actions}
    found: dict[str, float] = {}

    def end_s(name: str) -> float:
        if name not in found:
            pair = [name, *filter(None, [every[name].partner])]
            start_s = max((end_s(each) for one in pair for each in before[one]), default=0.0)
            for one in pair:
                found[one] = start_s + max(every[each].seconds for each in pair)
        return found[name]

    return {name: end_s(name) for name in every}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(systems(), SLOWDOWNS)
def test_nothing_starts_before_its_inputs_and_streams_do_one_thing_at_a_time(
    ranks: Ranks, slowdown: float
) -> None:
    timeline = simulate(ranks, overlap_slowdown=slowdown)
    found = times(timeline)
    assert set(found) == {action.name for actions in ranks for action in actions}
    for event in found.values():
        assert all(found[need].end_s <= event.start_s for need in event.action.needs)
        if event.action.partner:
            partner = found[event.action.partner]
            assert (partner.start_s, partner.end_s) == (event.start_s, event.end_s)
    for actions in ranks:
        for stream in {action.stream for action in actions}:
            listed = [found[action.name] for action in actions if action.stream == stream]
            assert all(first.end_s <= second.start_s for first, second in pairwise(listed))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(systems())
def test_without_slowdown_an_action_ends_where_its_longest_path_does(ranks: Ranks) -> None:
    found = {name: event.end_s for name, event in times(simulate(ranks)).items()}
    assert found == pytest.approx(longest_paths_s(ranks))


@settings(max_examples=600, deadline=None, derandomize=True)
@given(systems(), st.integers(0, 40), st.sampled_from([0.25, 1.0, 10.0]), SLOWDOWNS)
def test_a_longer_action_never_ends_anything_sooner(
    ranks: Ranks, position: int, seconds: float, slowdown: float
) -> None:
    before = times(simulate(ranks, overlap_slowdown=slowdown))
    after = times(simulate(lengthened(ranks, position, seconds), overlap_slowdown=slowdown))
    assert all(after[name].end_s >= before[name].end_s - ROUNDING for name in before)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(systems(), st.sampled_from([1.1, 2.0]))
def test_slowdown_stretches_a_step_by_itself_at_most(ranks: Ranks, slowdown: float) -> None:
    plain, slowed = (simulate(ranks, overlap_slowdown=each).step_s for each in (1.0, slowdown))
    assert plain - ROUNDING <= slowed <= slowdown * plain + ROUNDING


@settings(max_examples=200, deadline=None, derandomize=True)
@given(systems(), SLOWDOWNS)
def test_what_is_held_at_the_end_is_what_was_not_freed(ranks: Ranks, slowdown: float) -> None:
    timeline = simulate(ranks, overlap_slowdown=slowdown, resting_bytes=[7] * len(ranks))
    for rank, actions in enumerate(ranks):
        held = [held for _, held in timeline.memory[rank]]
        assert held[0] == 7
        assert held[-1] == 7 + sum(action.allocates_bytes - action.frees_bytes for action in actions)
        assert timeline.peak_bytes(rank) == max(held)


@pytest.mark.parametrize(("compute_s", "collective_s"), [(4.0, 1.0), (1.0, 4.0), (2.0, 2.0), (3.0, 0.0)])
def test_a_collective_beside_compute_costs_both(compute_s: float, collective_s: float) -> None:
    """max(k, c) + (slowdown − 1)·min(k, c): what the closed forms say."""
    actions = [Action("gather", "UNSHARD", DATA, collective_s), Action("forward", "F", COMPUTE, compute_s)]
    expected_s = max(compute_s, collective_s) + 0.1 * min(compute_s, collective_s)
    assert simulate([actions], overlap_slowdown=1.1).step_s == pytest.approx(expected_s)


def test_a_collective_that_compute_waits_for_runs_at_full_speed() -> None:
    gather = Action("gather", "UNSHARD", DATA, 2.0)
    forward = Action("forward", "F", COMPUTE, 3.0, needs=("gather",))
    timeline = simulate([[gather, forward]], overlap_slowdown=1.5)
    assert timeline.step_s == 5.0
    assert timeline.exposed_communication_s(0) == 2.0
    assert timeline.bubble_s(0) == 0.0


def test_sends_slow_nothing_down() -> None:
    work = [Action("a", "F", COMPUTE, 1.0), Action("b", "F", COMPUTE, 1.0)]
    send = Action("send", "SEND_F", "send", 1.0, needs=("a",), partner="receive")
    other = [Action("receive", "RECV_F", "receive", 0.0, partner="send")]
    timeline = simulate([[*work, send], other], overlap_slowdown=2.0)
    assert timeline.step_s == 2.0
    assert timeline.bubble_s(1) == 1.0


def test_a_collective_delayed_out_of_the_way_does_not_shorten_the_step() -> None:
    """It would if compute were slow exactly while a collective runs: 19, 15 and 15 s, ``c`` being in the bubble."""

    def step_s(first_s: float) -> float:
        before = [Action("first", "F", COMPUTE, first_s)]
        mine = [
            Action("c", "REDUCE_GRAD", DATA, 4.0, needs=("first",)),
            Action("a", "F", COMPUTE, 4.0),
            Action("b", "B", COMPUTE, 1.0, needs=("long",)),
        ]
        behind = [Action("long", "F", COMPUTE, 10.0, needs=("a",))]
        return simulate([before, mine, behind], overlap_slowdown=2.0).step_s

    steps = [step_s(first_s) for first_s in (0.0, 4.0, 8.0)]
    assert steps == sorted(steps)


def test_collectives_on_the_compute_stream_are_exposed() -> None:
    actions = [Action("product", "F", COMPUTE, 3.0), Action("sum", COLLECTIVE, COMPUTE, 1.0)]
    timeline = simulate([actions])
    assert timeline.exposed_communication_s(0) == 1.0
    assert timeline.busy_s(0) == timeline.step_s == 4.0


def test_what_ends_is_freed_before_what_starts_is_held() -> None:
    actions = [
        Action("a", "F", COMPUTE, 1.0, allocates_bytes=8, frees_bytes=8),
        Action("b", "F", COMPUTE, 1.0, allocates_bytes=5, frees_bytes=2),
    ]
    timeline = simulate([actions])
    assert timeline.memory == (((0.0, 0), (0.0, 8), (1.0, 0), (1.0, 5), (2.0, 3)),)
    assert timeline.peak_bytes(0) == 8


def test_a_step_of_nothing_takes_no_time() -> None:
    timeline = simulate([[]])
    assert (timeline.step_s, timeline.bubble_fraction, timeline.peak_bytes(0)) == (0.0, 0.0, 0)


def test_a_circle_of_waiting_is_refused_and_named() -> None:
    first = [Action("a", "F", COMPUTE, 1.0, needs=("d",)), Action("b", "F", COMPUTE, 1.0)]
    second = [Action("c", "F", COMPUTE, 1.0, needs=("b",)), Action("d", "F", COMPUTE, 1.0)]
    with pytest.raises(ScheduleError, match="a for d; c for b"):
        simulate([first, second])


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([Action("a", "F", COMPUTE, 1.0), Action("a", "B", COMPUTE, 1.0)], "two actions are called a"),
        ([Action("a", "F", COMPUTE, 1.0, needs=("z",))], "a needs z"),
        ([Action("a", "F", COMPUTE, -1.0)], "a takes -1.0 s"),
        ([Action("a", "SEND_F", "send", 1.0, partner="z")], "z as its partner"),
        (
            [Action("a", "F", COMPUTE, 1.0, partner="b"), Action("b", "F", "send", 1.0, partner="a")],
            "cannot run",
        ),
    ],
)
def test_actions_that_do_not_fit_together_are_refused(actions: list[Action], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        simulate([actions])


def test_a_slowdown_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be below 1"):
        simulate([[]], overlap_slowdown=0.9)
