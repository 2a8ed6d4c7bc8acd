"""Bytes on a device: what parameters hold at rest, what the allocator and the runtimes add."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cost_models.device import Device
from cost_models.dtypes import dtype_bytes
from cost_models.units import MiB

__all__ = [
    "COMPUTE_DTYPE",
    "OPTIMIZER_STATE_BYTES",
    "ParameterBytes",
    "allocated_bytes",
    "at_rest",
    "overhead_bytes",
    "usable_bytes",
]

COMPUTE_DTYPE: Mapping[str, str] = MappingProxyType(
    {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
)
"""Dtype of activations and gathered weights, by precision; master weights and reductions are float32."""

OPTIMIZER_STATE_BYTES: Mapping[str, int] = MappingProxyType(
    {"adamw": 8, "adam": 8, "sgd-momentum": 4, "sgd": 0, "none": 0}
)
"""Bytes of float32 state per parameter: two moments, one, or none."""


@dataclass(frozen=True, slots=True)
class ParameterBytes:
    """Bytes that one parameter (a number, not a tensor) takes between steps and in the step."""

    master: int
    """The float32 parameter that the optimizer updates."""
    gradient: int
    """Its accumulated float32 gradient."""
    optimizer: int
    """The optimizer's state."""
    working: int
    """A copy in the compute dtype, alive while its block runs; 0 when the master itself is used."""

    @property
    def at_rest(self) -> int:
        """Bytes per parameter that are sharded when parameters at rest are sharded (ZeRO-3)."""
        return self.master + self.gradient + self.optimizer


def at_rest(precision: str, optimizer: str) -> ParameterBytes:
    """Bytes per parameter: AdamW takes 4 + 4 + 8, and 2 more while in use at 16 bits."""
    if precision not in COMPUTE_DTYPE:
        raise ValueError(f"unknown precision {precision!r}: known are {', '.join(COMPUTE_DTYPE)}")
    if optimizer not in OPTIMIZER_STATE_BYTES:
        raise ValueError(f"unknown optimizer {optimizer!r}: known are {', '.join(OPTIMIZER_STATE_BYTES)}")
    working = dtype_bytes(COMPUTE_DTYPE[precision])
    return ParameterBytes(4, 4, OPTIMIZER_STATE_BYTES[optimizer], 0 if working == 4 else working)


def allocated_bytes(tensor_bytes: float, device: Device) -> int:
    """What the allocator sets aside for one tensor.

    CUDA: multiples of 512 B, and of 2 MiB from 10 MiB on (c10/cuda/CUDACachingAllocator); CPU: of 64 B.
    """
    if device.kind != "cuda":
        return math.ceil(tensor_bytes / 64) * 64
    step = 2 * MiB if tensor_bytes >= 10 * MiB else 512
    return math.ceil(tensor_bytes / step) * step


def overhead_bytes(device: Device, communicators: int) -> int:
    """Held on the device beside tensors: the context, and the buffers of each process group."""
    return device.context_bytes + communicators * device.communicator_bytes


def usable_bytes(device: Device, communicators: int) -> int:
    """What is left for tensors."""
    return device.memory_bytes - overhead_bytes(device, communicators)
