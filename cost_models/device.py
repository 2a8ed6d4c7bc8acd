"""What one device can do: capacity, rates and measured curves, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cost_models.curves import (
    AttentionCurve,
    AttentionRates,
    AttentionTiles,
    MatmulCurve,
    MemoryCurve,
    PackedProducts,
)

__all__ = ["Device"]


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or one process of a CPU.

    Only the first six fields are needed to price anything; where a curve is missing, prices fall back to the
    roofline of ``peak_flops_per_s`` and ``memory_bytes_per_s``.
    """

    name: str
    memory_bytes: int
    """Capacity as the driver reports it."""
    memory_bytes_per_s: float
    """Peak memory bandwidth."""
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    """Dense peak by dtype; tensor cores where they apply."""
    kernel_launch_s: float
    """Least time of one kernel on the device, however small."""
    host_dispatch_s: float
    """Host time to issue one operator in eager mode."""
    compiled_call_s: float = 0.0
    """Host time of one call (forward or backward) of a compiled region beside its kernels; 0: unknown."""
    compiled_kernel_s: float = 0.0
    """Host time to issue one kernel from inside a compiled region; 0: unknown."""
    fresh_bytes_per_s: float = 0.0
    """Rate at which the system of a CPU hands out pages of a tensor so large that malloc maps it anew; 0: free."""
    kind: str = "cuda"
    """``cuda`` or ``cpu``: which runtime's overheads apply."""
    context_bytes: int = 0
    """Held by the driver, the libraries' workspaces and the allocator before the first tensor."""
    communicator_bytes: int = 0
    """Held by the communication library for one process group."""
    overlap_slowdown: float = 1.0
    """How much slower compute runs while a collective runs beside it."""
    matmul: Mapping[str, MatmulCurve | PackedProducts] = field(default_factory=dict, hash=False)
    """By dtype."""
    attention: Mapping[str, AttentionCurve | AttentionRates | AttentionTiles] = field(
        default_factory=dict, hash=False
    )
    """By pass: ``attention`` and ``attention_backward``."""
    families: Mapping[str, MemoryCurve] = field(default_factory=dict, hash=False)
    """Kernels bound by memory, by family; a missing ``x_backward`` is priced as ``x``."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Source of every plain figure, by field name."""

    def __post_init__(self) -> None:
        figures = {
            "memory_bytes": self.memory_bytes,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            **{f"peak_flops_per_s.{dtype}": rate for dtype, rate in self.peak_flops_per_s.items()},
        }
        for name, value in figures.items():
            if not value > 0:
                raise ValueError(f"device {self.name!r}: {name} is {value}, it must be positive")
        if "float32" not in self.peak_flops_per_s:
            raise ValueError(f"device {self.name!r}: peak_flops_per_s has no float32")

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of ``dtype``; a dtype the device has no figure for runs as float32."""
        return self.peak_flops_per_s.get(dtype, self.peak_flops_per_s["float32"])
