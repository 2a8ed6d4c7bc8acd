"""The most memory that training holds on one rank: the allocator's word on a GPU, the process's on a CPU."""

from __future__ import annotations

import ctypes
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import torch

__all__ = ["MemoryMeter", "memory_meter"]


class MemoryMeter(ABC):
    """Made before the model is built, started when training begins."""

    description: str
    """What the figure is."""

    @abstractmethod
    def start(self) -> None:
        """Forget the peak so far: whole models that were built to be sharded."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The highest level since ``start``, above the level when the meter was made."""

    def more_bytes(self) -> dict[str, int]:
        """What else is known, by name."""
        return {}


def memory_meter(device: torch.device) -> MemoryMeter:
    if device.type == "cuda":
        return CudaMeter(device)
    return ResidentMeter() if sys.platform == "linux" else NoMeter()


class CudaMeter(MemoryMeter):
    """Tensors of the caching allocator."""

    description = "most bytes of tensors that training held on the fullest GPU (max_memory_allocated)"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_bytes = torch.cuda.memory_allocated(device)

    def start(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before_bytes

    def more_bytes(self) -> dict[str, int]:
        """What the allocator holds of the device, free pieces included."""
        return {"reserved_bytes": torch.cuda.max_memory_reserved(self._device)}


class ResidentMeter(MemoryMeter):
    """Resident memory of the process, by ``/proc/self`` (proc(5): VmRSS, VmHWM, clear_refs)."""

    description = (
        "highest resident memory of the fullest process while training, above its level before the model"
    )

    def __init__(self) -> None:
        _return_free_memory()
        self._before_bytes = _status_bytes("VmRSS")

    def start(self) -> None:
        _return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS

    def peak_bytes(self) -> int:
        return max(0, _status_bytes("VmHWM") - self._before_bytes)


class NoMeter(MemoryMeter):
    """Where nobody says."""

    description = "not measured on this system"

    def start(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return 0


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _return_free_memory() -> None:
    """Hand what malloc keeps for later back to the system (glibc's ``malloc_trim``; others have none)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
