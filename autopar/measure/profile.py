"""Measures the devices and links at hand: all families in turn, then a profile fitted to the readings."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autopar.errors import ClusterError
from autopar.measure.attention import attention_cases
from autopar.measure.cases import Case
from autopar.measure.clock import Budget, Clock, CudaClock, clock_for, measure_cases
from autopar.measure.collectives import LinkOutcome, group_sizes, measure_links
from autopar.measure.cpu import CpuOptions, cpu_readings
from autopar.measure.eager import eager_cases
from autopar.measure.fit import EMPTY_KERNEL, fit_profile
from autopar.measure.host import host_readings
from autopar.measure.losses import end_cases
from autopar.measure.matmul import linear_cases
from autopar.measure.memory_bound import memory_cases
from autopar.measure.optimizer import optimizer_cases
from autopar.measure.progress import Progress
from autopar.measure.readings import (
    DeviceFacts,
    HostReading,
    OperatorReading,
    Readings,
    Skipped,
)
from autopar.measure.sustained import sustained_readings
from autopar.torch_private import recompilations_allowed
from cost_models.operators import Work
from cost_models.profile_text import format_profile
from cost_models.profiles import Profile, builtin_profile, profile_names

__all__ = ["Options", "base_profile", "device_named", "measure_profile", "profile_here", "take_readings"]

ROUNDS = 15
QUICK_ROUNDS = 3
RECOMPILATIONS = 256
"""One function is compiled for each of its shapes."""


@dataclass(frozen=True, slots=True)
class Options:
    """How thoroughly to measure."""

    is_quick: bool = False
    """A third of the grid and of the samples."""
    limit_s: float = 240.0
    """Nothing new is started after this wall time; what is left out is listed as skipped."""
    devices: int = 0
    """Processes between which links are measured; 0 for all GPUs of the node, or two processes of a CPU, which run
    the operators at the same time too."""
    readings_path: Path | None = None
    """Where the readings are written after each family, so that nothing is lost."""


def measure_profile(
    device: torch.device, *, quick: bool = False, progress: Progress | None = None
) -> Profile:
    """The profile of ``device`` and of the links between the devices of this node."""
    options = Options(is_quick=quick)
    return fit_profile(take_readings(device, options, progress or _silent), base_profile(device))


def profile_here(
    device: str, options: Options, progress: Progress, *, name: str = ""
) -> tuple[str, Readings]:
    """The profile of this machine as text, and what it was fitted on; ``device`` as in ``device_named``."""
    chosen = device_named(device)
    readings = take_readings(chosen, options, progress)
    return format_profile(fit_profile(readings, base_profile(chosen), name=name)), readings


def device_named(text: str) -> torch.device:
    """``cuda`` (the current GPU) or ``cpu``; with no text a GPU where there is one. Raises ClusterError."""
    kind = text or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu"):
        raise ClusterError(f"unknown device {text!r}: known are cuda, cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ClusterError("torch sees no GPU here: measure the cpu, or install torch for this machine's GPU")
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def take_readings(device: torch.device, options: Options, progress: Progress) -> Readings:
    """Everything that can be measured here. Raises LaunchError when processes for the links fail."""
    if device.type == "cpu":
        asked = CpuOptions(options.is_quick, options.limit_s, options.devices, options.readings_path)
        return cpu_readings(asked, progress)
    budget = Budget(options.limit_s)
    links = _links(device, options, progress)
    with recompilations_allowed(RECOMPILATIONS):
        return _Session(device, options, progress, budget, links).run()


def base_profile(device: torch.device) -> Profile | None:
    """The profile that comes with this package for the device, for what is not measured; None if unknown."""
    name = _device_name(device).lower() if device.type == "cuda" else "cpu"
    if any(other in name for other in ("pcie", "nvl")):
        return None
    words = name.replace("-", " ").replace("_", " ")
    known = [alias for alias in profile_names() if all(part in words for part in alias.split("-"))]
    return builtin_profile(max(known, key=len)) if known else None


def _links(device: torch.device, options: Options, progress: Progress) -> LinkOutcome:
    """First, while this process holds nothing on the devices."""
    devices = options.devices or torch.cuda.device_count()
    total = len(group_sizes(devices))
    if not total:
        return LinkOutcome((), 0)
    progress("links", 0, total)
    outcome = measure_links(device.type, devices, is_quick=options.is_quick)
    progress("links", total, total)
    return outcome


class _Session:
    """One run over all families: holds what they share."""

    def __init__(
        self, device: torch.device, options: Options, progress: Progress, budget: Budget, links: LinkOutcome
    ) -> None:
        self.device, self.options, self.progress = device, options, progress
        self.budget, self.links = budget, links
        self.operators: list[OperatorReading] = []
        self.host: list[HostReading] = []
        self.skipped: list[Skipped] = []

    def run(self) -> Readings:
        self._measure_host()
        self.operators += sustained_readings(self.device, is_quick=self.options.is_quick)
        clock = clock_for(self.device)
        if isinstance(clock, CudaClock):
            self._keep_empty_kernel(clock)
        for family, cases in self._families():
            self._measure(family, cases, clock)
        return self._save()

    def _measure_host(self) -> None:
        """In a quiet process: before anything else fills its queues."""
        self.progress("host", 0, 1)
        try:
            self.host += host_readings(self.device, is_quick=self.options.is_quick)
        except RuntimeError as error:
            self.skipped.append(Skipped("host", str(error)[:200]))
        self.progress("host", 1, 1)

    def _families(self) -> Iterator[tuple[str, list[Case]]]:
        """What matters most first."""
        device, is_quick = self.device, self.options.is_quick
        yield "matrix products bfloat16", linear_cases(device, "bfloat16", is_quick=is_quick)
        yield "attention", attention_cases(device, "bfloat16", is_quick=is_quick)
        yield "optimizer", optimizer_cases(device, is_quick=is_quick)
        yield "matrix products float32", linear_cases(device, "float32", is_quick=is_quick)
        yield "loss and embedding", end_cases(device, is_quick=is_quick)
        yield "memory-bound kernels", memory_cases(device, is_quick=is_quick)
        yield "operator by operator", eager_cases(device, is_quick=is_quick)

    def _measure(self, family: str, cases: list[Case], clock: Clock) -> None:
        rounds = QUICK_ROUNDS if self.options.is_quick else ROUNDS
        outcome = measure_cases(
            cases,
            clock,
            rounds=rounds,
            budget=self.budget,
            progress=lambda done: self.progress(family, done, len(cases)),
        )
        self.operators += outcome.readings
        self.skipped += outcome.skipped
        self._save()

    def _keep_empty_kernel(self, clock: CudaClock) -> None:
        work = Work("free", 0.0, 32.0, 32.0, "float32")
        self.operators.append(OperatorReading(EMPTY_KERNEL, work, clock.empty_kernel_s, 0.0, 30))

    def _save(self) -> Readings:
        readings = Readings(
            facts=replace(_facts(self.device), communicator_bytes=self.links.communicator_bytes),
            operators=tuple(self.operators),
            host=tuple(self.host),
            links=self.links.readings,
            skipped=tuple(self.skipped),
            wall_s=round(self.budget.used_s, 1),
        )
        if self.options.readings_path:
            readings.write(self.options.readings_path)
        return readings


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _facts(device: torch.device) -> DeviceFacts:
    name, date = _device_name(device), datetime.date.today().isoformat()
    properties = torch.cuda.get_device_properties(device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    clock_hz = 1e3 * getattr(properties, "memory_clock_rate", 0)
    return DeviceFacts(
        name,
        "cuda",
        torch.__version__,
        date,
        properties.multi_processor_count,
        total_bytes,
        max(total_bytes - free_bytes - torch.cuda.memory_reserved(device), 0),
        driver_bytes_per_s=2.0 * clock_hz * getattr(properties, "memory_bus_width", 0) / 8,
        note=f"tf32 {tf32}",
    )
