"""Cases are timed in turn; what fails or runs out of time is reported, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autopar.measure.cases import Case, Pass, repeats_for
from autopar.measure.clock import Budget, Clock, measure_cases, quartile_spread
from cost_models.operators import Work

WORK = Work("copy", 0.0, 1e6, 1e6, "bfloat16")


class FakeClock(Clock):
    """Every run takes as long as the last runner says; the host is late behind little background."""

    def __init__(self, needed_background: int = 0, chunk_bytes: float = 1e9) -> None:
        self.needed_background, self._chunk_bytes = needed_background, chunk_bytes
        self.order: list[str] = []

    def sample(self, run: Callable[[], None], background: int) -> Callable[[], float | None]:
        run()
        is_late = background < self.needed_background
        return lambda: None if is_late else 1e-3

    def settle(self) -> None:
        """Nothing to wait for."""

    @property
    def chunk_bytes(self) -> float:
        return self._chunk_bytes


def case(name: str, clock: FakeClock, *, held_bytes: float = 1.0, repeats: int = 1, fails: str = "") -> Case:
    def prepare() -> tuple[Pass, ...]:
        if fails:
            raise RuntimeError(fails)
        return (Pass(name, WORK, lambda: clock.order.append(name), repeats),)

    return Case(name, held_bytes, prepare)


def measure(cases: list[Case], clock: Clock, budget: Budget | None = None, rounds: int = 3):
    return measure_cases(cases, clock, rounds=rounds, budget=budget or Budget(), progress=lambda done: None)


def test_cases_take_turns() -> None:
    clock = FakeClock()
    measure([case("a", clock), case("b", clock)], clock)
    assert "".join(clock.order[-6:]) == "ababab"


def test_cases_that_do_not_fit_together_are_timed_apart() -> None:
    clock = FakeClock(chunk_bytes=10.0)
    measure([case("a", clock, held_bytes=8.0), case("b", clock, held_bytes=8.0)], clock)
    assert "".join(clock.order) == len(clock.order) // 2 * "a" + len(clock.order) // 2 * "b"


def test_seconds_are_those_of_one_operator() -> None:
    clock = FakeClock()
    (reading,) = measure([case("a", clock, repeats=4)], clock).readings
    assert reading.seconds == pytest.approx(0.25e-3)
    assert reading.samples == 3


def test_a_late_host_gets_more_background() -> None:
    clock = FakeClock(needed_background=8)
    outcome = measure([case("a", clock)], clock)
    assert [reading.samples for reading in outcome.readings] == [3]


def test_a_host_that_is_always_late_gives_no_reading() -> None:
    clock = FakeClock(needed_background=1000)
    outcome = measure([case("a", clock)], clock)
    assert outcome.readings == ()
    assert [entry.name for entry in outcome.skipped] == ["a"]


def test_a_case_that_fails_is_named_and_the_others_go_on() -> None:
    clock = FakeClock()
    outcome = measure([case("a", clock, fails="CUDA out of memory"), case("b", clock)], clock)
    assert [reading.name for reading in outcome.readings] == ["b"]
    assert [(entry.name, entry.reason) for entry in outcome.skipped] == [
        ("a", "RuntimeError: CUDA out of memory")
    ]


def test_nothing_is_started_once_the_time_is_spent() -> None:
    clock = FakeClock()
    outcome = measure([case("a", clock)], clock, Budget(limit_s=0.0))
    assert clock.order == []
    assert outcome.readings == ()
    assert "no time left" in outcome.skipped[0].reason


def test_short_operators_are_repeated_and_long_ones_are_not() -> None:
    short, long = Work("copy", 0.0, 1e3, 1e3, "bfloat16"), Work("copy", 0.0, 1e9, 1e9, "bfloat16")
    assert repeats_for(short) == 8
    assert repeats_for(short, most=3) == 3
    assert repeats_for(long) == 1


def test_the_spread_is_the_distance_between_quartiles() -> None:
    assert quartile_spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == pytest.approx(4.0)
    assert quartile_spread([1.0]) == 0.0
