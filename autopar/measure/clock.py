"""How operators are timed: behind other work, in a filled queue, on cold caches, interleaved; medians.

In a hot loop a device shows what it never does in a training step: caches hold the operands, and the power
limit is not reached. So every sample comes right after *background* work: a large matrix product and a pass
over memory, in about the proportion of a step. On a GPU the background also gives the host time to issue
the sample, so that no host time is in it; a sample for which that failed is taken again behind more of it.
"""

from __future__ import annotations

import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch

from autopar.measure.cases import Case, Pass
from autopar.measure.readings import OperatorReading, Skipped

__all__ = [
    "Budget",
    "Clock",
    "CpuClock",
    "CudaClock",
    "Outcome",
    "clock_for",
    "measure_cases",
    "quartile_spread",
]

WARM_UP_RUNS = 2
MOST_BACKGROUND = 16
"""Times the background that a sample may need before its host time hides."""


@dataclass(slots=True)
class Budget:
    """Wall time that measuring may take."""

    limit_s: float = float("inf")
    started_s: float = field(default_factory=time.monotonic)

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_s

    @property
    def is_spent(self) -> bool:
        """True when nothing more should be started."""
        return self.used_s >= self.limit_s


class Clock(ABC):
    """Times runs on one device."""

    @abstractmethod
    def sample(self, run: Callable[[], None], background: int) -> Callable[[], float | None]:
        """Run ``run`` behind ``background`` portions of other work.

        Returns a function that gives the seconds once ``settle`` was called: None where the host was late.
        """

    @abstractmethod
    def settle(self) -> None:
        """Wait until everything issued has run."""

    @property
    @abstractmethod
    def chunk_bytes(self) -> float:
        """Memory that cases measured together may hold."""


@final
class CudaClock(Clock):
    """CUDA events around each run; their own cost, measured with an almost empty kernel, is taken off."""

    def __init__(self, device: torch.device, warm_s: float = 3.0) -> None:
        self._product = torch.randn(2, 4096, 4096, device=device, dtype=torch.bfloat16)
        self._pass = torch.randn(2, 2**26, device=device, dtype=torch.bfloat16)
        self._free_bytes = torch.cuda.mem_get_info(device)[0]
        self.overhead_s = 0.0
        self._warm(warm_s)
        self.overhead_s, self.empty_kernel_s = self._calibrate()

    def _warm(self, seconds: float) -> None:
        """Let power and clocks settle."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._background(50)
            self.settle()

    def sample(self, run: Callable[[], None], background: int) -> Callable[[], float | None]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._background(background)
        start.record()
        run()
        is_late = start.query()
        end.record()
        return lambda: None if is_late else start.elapsed_time(end) * 1e-3 - self.overhead_s

    def settle(self) -> None:
        torch.cuda.synchronize()

    @property
    def chunk_bytes(self) -> float:
        return 0.25 * self._free_bytes

    def _background(self, portions: int) -> None:
        """About 0.3 ms each on an H100, two thirds of it in a matrix product."""
        for _ in range(portions):
            torch.mm(self._product[0], self._product[1])
            torch.add(self._pass[0], self._pass[1])

    def _calibrate(self, samples: int = 30) -> tuple[float, float]:
        """(what a pair of events adds, one almost empty kernel in a filled queue), by runs of 1 and 17."""
        tiny = torch.zeros(8, device=self._pass.device)

        def run(count: int) -> None:
            for _ in range(count):
                tiny.add_(1.0)

        for count in (1, 17):
            run(count)
        self.settle()
        waiting = [(self.sample(lambda: run(1), 4), self.sample(lambda: run(17), 8)) for _ in range(samples)]
        self.settle()
        once_s, often_s = (
            statistics.median(found for pair in waiting if (found := pair[index]()) is not None)
            for index in (0, 1)
        )
        kernel_s = (often_s - once_s) / 16
        return max(once_s - kernel_s, 0.0), kernel_s


@final
class CpuClock(Clock):
    """The monotonic clock around each run, behind a pass over an array larger than the caches."""

    def __init__(self, pass_bytes: int = 2**25) -> None:
        self._pass = torch.zeros(pass_bytes // 4)

    def sample(self, run: Callable[[], None], background: int) -> Callable[[], float | None]:
        self._pass.add_(1.0)
        started_s = time.perf_counter()
        run()
        seconds = time.perf_counter() - started_s
        return lambda: seconds

    def settle(self) -> None:
        """Nothing runs behind the host's back."""

    @property
    def chunk_bytes(self) -> float:
        return 2.0**28


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a list of cases."""

    readings: tuple[OperatorReading, ...]
    skipped: tuple[Skipped, ...]


def measure_cases(
    cases: Sequence[Case], clock: Clock, *, rounds: int, budget: Budget, progress: Callable[[int], None]
) -> Outcome:
    """Time every case ``rounds`` times, several cases in turn, until the budget is spent.

    A case that fails (no memory, no kernel) is reported and does not stop the others.
    """
    readings: list[OperatorReading] = []
    skipped: list[Skipped] = []
    done = 0
    for chunk in _chunks(cases, clock.chunk_bytes):
        prepared: list[_Timing] = []
        for case in chunk:
            try:
                if budget.is_spent:
                    skipped.append(Skipped(case.name, f"no time left after {budget.used_s:.0f} s"))
                else:
                    prepared += _prepare(case, clock)
            except (RuntimeError, NotImplementedError) as error:
                skipped.append(Skipped(case.name, f"{type(error).__name__}: {str(error).strip()[:200]}"))
            done += 1
            progress(done)
        try:
            _run_rounds(prepared, clock, rounds)
        except RuntimeError as error:
            skipped.append(Skipped(f"rounds of {chunk[0].name}…", str(error).strip()[:200]))
        readings += [timing.reading() for timing in prepared if timing.samples]
        skipped += [
            Skipped(timing.what.name, "no sample, or the host was late for all")
            for timing in prepared
            if not timing.samples
        ]
        del prepared
        _release()
    return Outcome(tuple(readings), tuple(skipped))


@dataclass(slots=True)
class _Timing:
    """The samples of one pass."""

    what: Pass
    background: int
    samples: list[float] = field(default_factory=list)

    def reading(self) -> OperatorReading:
        each = [max(sample, 0.0) / self.what.repeats for sample in self.samples]
        return OperatorReading(
            self.what.name, self.what.work, statistics.median(each), quartile_spread(each), len(each)
        )


def quartile_spread(samples: Sequence[float]) -> float:
    """Distance between the quartiles; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low


def _prepare(case: Case, clock: Clock) -> list[_Timing]:
    """Allocates, warms up (compiles, tunes), and finds how much background hides the host."""
    passes = case.prepare()
    for _ in range(WARM_UP_RUNS):
        for what in passes:
            what.run()
    clock.settle()
    timings = [_Timing(what, background=2) for what in passes]
    while True:
        late = [timing for timing, seconds in _one_round(timings, clock) if seconds is None]
        if not late or max(timing.background for timing in late) >= MOST_BACKGROUND:
            return timings
        for timing in late:
            timing.background *= 2


def _one_round(timings: Sequence[_Timing], clock: Clock) -> list[tuple[_Timing, float | None]]:
    waiting = [(timing, clock.sample(timing.what.run, timing.background)) for timing in timings]
    clock.settle()
    return [(timing, read()) for timing, read in waiting]


def _run_rounds(timings: Sequence[_Timing], clock: Clock, rounds: int) -> None:
    with _no_garbage_collection():
        for _ in range(rounds if timings else 0):
            for timing, seconds in _one_round(timings, clock):
                if seconds is not None:
                    timing.samples.append(seconds)


def _chunks(cases: Iterable[Case], limit_bytes: float, most: int = 24) -> Iterator[list[Case]]:
    """Runs of cases that fit into memory together."""
    chunk: list[Case] = []
    held_bytes = 0.0
    for case in cases:
        if chunk and (held_bytes + case.held_bytes > limit_bytes or len(chunk) == most):
            yield chunk
            chunk, held_bytes = [], 0.0
        chunk.append(case)
        held_bytes += case.held_bytes
    if chunk:
        yield chunk


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python's collector from pausing the host between an event and what it times."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
