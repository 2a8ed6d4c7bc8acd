"""One training step under torch.profiler, as a Chrome trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["profiled"]

STEP_MARK = "ProfilerStep#0"
"""What torch.profiler itself calls a step."""


def profiled(step: Callable[[], object], path: Path, device: torch.device) -> None:
    """Run ``step`` on every rank, and leave rank 0's trace of it in ``path``. Every rank calls it."""
    is_traced = dist.get_rank() == 0
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    profiling = profile(activities=activities) if is_traced else nullcontext()
    with profiling as profiler, record_function(STEP_MARK):
        step()
    if profiler is not None:
        profiler.export_chrome_trace(str(path))
