"""Seconds and bytes of training steps, of the slowest and the fullest rank."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["everywhere", "profiled_step", "release", "timed_steps", "wait"]

TOP_KERNELS = 30
STEP_MARK = "ProfilerStep#0"
"""What torch.profiler itself calls a step; `autopar trace --measured` looks for it."""

Step = Callable[[], Any]


def timed_steps(step: Step, steps: int, device: torch.device) -> dict[str, Any]:
    """Runs steps without synchronising between them; every rank calls it, and all get the same.

    ``steps_s``: each step on its slowest rank, between CUDA events (the clock, on a CPU). ``issue_s``: the host's.
    ``peak_bytes``: the most that tensors held on the fullest rank (max_memory_allocated; 0 on a CPU).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    marks, issues_s = [_mark(device)], []
    for _ in range(steps):
        started_s = time.perf_counter()
        step()
        issues_s.append(time.perf_counter() - started_s)
        marks.append(_mark(device))
    wait(device)
    mine = (
        [_between_s(first, second) for first, second in itertools.pairwise(marks)],
        issues_s,
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
    )
    ranks = everywhere(mine)
    return {
        "steps_s": [max(times) for times in zip(*(rank[0] for rank in ranks), strict=True)],
        "issues_s": [max(times) for times in zip(*(rank[1] for rank in ranks), strict=True)],
        "peak_bytes": max(rank[2] for rank in ranks),
        "reserved_bytes": max(rank[3] for rank in ranks),
    }


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def profiled_step(step: Step, path: Path, device: torch.device) -> dict[str, list[float]]:
    """Runs one step under torch.profiler on every rank; rank 0 writes its trace (gzip where ``path`` ends so).

    Returns seconds and launches of the kernels that take most of the step, by name.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler, record_function(STEP_MARK):
        step()
        wait(device)
    if not dist.is_initialized() or dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    if device.type != "cuda":
        return {}
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
    kernels = [row for row in rows if not row.key.startswith(STEP_MARK)][:TOP_KERNELS]
    return {row.key[:160]: [row.self_device_time_total * 1e-6, row.count] for row in kernels}


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Leaves nothing of a contestant behind: its compiled code, and memory that nobody holds."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_s(first: Any, second: Any) -> float:
    return float(second - first) if isinstance(first, float) else float(first.elapsed_time(second)) * 1e-3
