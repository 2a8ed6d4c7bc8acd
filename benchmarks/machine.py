"""The machine at hand, for files of results: its processor, and which of its cores are used."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["hold_to_cores", "processor"]


def processor() -> str:
    """The processor's name as Linux knows it, else what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def hold_to_cores(cores: int) -> None:
    """Lets this process, and those it starts, use so many cores only."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
