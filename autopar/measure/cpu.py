"""Measures a CPU: as many processes as will train run every operator at the same time, and speak to each other.

In a step they share caches and the memory's bandwidth, so a process by itself would look too fast.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from autopar.measure.attention import attention_cases
from autopar.measure.cases import Case
from autopar.measure.clock import Budget, CpuClock, measure_cases
from autopar.measure.collectives import LinkOutcome, links_here
from autopar.measure.float32_cases import float32_cases
from autopar.measure.fresh_pages import fresh_page_readings
from autopar.measure.host import host_readings
from autopar.measure.matmul import linear_cases
from autopar.measure.optimizer import optimizer_cases
from autopar.measure.processes import run_in_processes
from autopar.measure.progress import Progress
from autopar.measure.readings import DeviceFacts, HostReading, OperatorReading, Readings, Skipped

__all__ = ["CpuOptions", "cpu_readings"]

CPU = torch.device("cpu")
USUAL_PROCESSES = 2
ROUNDS, QUICK_ROUNDS = 15, 3


@dataclass(frozen=True, slots=True)
class CpuOptions:
    """How thoroughly to measure."""

    is_quick: bool = False
    limit_s: float = 240.0
    """Nothing new is started after this wall time."""
    processes: int = 0
    """0 for two."""
    readings_path: Path | None = None
    """Where the readings are written after each family."""


def cpu_readings(options: CpuOptions, progress: Progress) -> Readings:
    """What rank 0 of the processes reads. Raises LaunchError when a process fails."""
    processes = options.processes or USUAL_PROCESSES
    if processes == 1:
        return _Session(options, LinkOutcome((), 0), progress).run()
    return run_in_processes(_on_rank, (options,), device_type="cpu", processes=processes, progress=progress)


def _on_rank(device: torch.device, progress: Progress, options: CpuOptions) -> Readings:
    """Links, then every case at about the same time as the other ranks."""
    mine = options if dist.get_rank() == 0 else replace(options, readings_path=None)

    def together(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        dist.barrier()

    return _Session(mine, links_here(device, progress, options.is_quick), together).run()


class _Session:
    """One run over all families: holds what they share."""

    def __init__(self, options: CpuOptions, links: LinkOutcome, progress: Progress) -> None:
        self.options, self.links, self.progress = options, links, progress
        self.budget = Budget(options.limit_s)
        self.operators: list[OperatorReading] = []
        self.host: list[HostReading] = []
        self.skipped: list[Skipped] = []

    def run(self) -> Readings:
        self.progress("host", 0, 1)
        self.host += host_readings(CPU, is_quick=self.options.is_quick)
        self.operators += fresh_page_readings()
        self.progress("host", 1, 1)
        clock = CpuClock()
        for family, cases in self._families():
            self._measure(family, cases, clock)
        return self._save()

    def _families(self) -> Iterator[tuple[str, list[Case]]]:
        """What matters most first."""
        is_quick = self.options.is_quick
        yield "matrix products float32", linear_cases(CPU, "float32", is_quick=is_quick)
        yield "attention", attention_cases(CPU, "float32", is_quick=is_quick)
        yield "memory-bound kernels", float32_cases(is_quick=is_quick)
        yield "optimizer", optimizer_cases(CPU, is_quick=is_quick)
        yield "matrix products bfloat16", linear_cases(CPU, "bfloat16", is_quick=is_quick)

    def _measure(self, family: str, cases: list[Case], clock: CpuClock) -> None:
        outcome = measure_cases(
            cases,
            clock,
            rounds=QUICK_ROUNDS if self.options.is_quick else ROUNDS,
            budget=self.budget,
            progress=lambda done: self.progress(family, done, len(cases)),
        )
        self.operators += outcome.readings
        self.skipped += outcome.skipped
        self._save()

    def _save(self) -> Readings:
        readings = Readings(
            facts=_facts(),
            operators=tuple(self.operators),
            host=tuple(self.host),
            links=self.links.readings,
            skipped=tuple(self.skipped),
            wall_s=round(self.budget.used_s, 1),
        )
        if self.options.readings_path:
            readings.write(self.options.readings_path)
        return readings


def _facts() -> DeviceFacts:
    """One device is one process with its share of the memory."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    threads = torch.get_num_threads()
    note = f"{processes} processes at once, threads of each: {threads}, cores: {os.cpu_count()}"
    date = datetime.date.today().isoformat()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes
    return DeviceFacts(_processor(), "cpu", torch.__version__, date, 1, memory_bytes, 0, note=note)


def _processor() -> str:
    """The processor as Linux knows it, else what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
