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
    "unsplit_bytes",
    "usable_bytes",
    "workspace_bytes",
]

COMPUTE_DTYPE: Mapping[str, str] = MappingProxyType(
    {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
)
"""Dtype of activations and gathered weights, by precision; master weights and reductions are float32."""

OPTIMIZER_STATE_BYTES: Mapping[str, int] = MappingProxyType(
    {"adamw": 8, "adam": 8, "sgd-momentum": 4, "sgd": 0, "none": 0}
)
"""Bytes of float32 state per parameter: two moments, one, or none."""

UNSPLIT_SHARE = 0.005
"""Tensors of 1 to 10 MiB are cut from segments of 20 MiB, whose rest of up to 1 MiB stays with the last one:
assumed to be half a percent of what is allocated."""
CUBLAS_WORKSPACE_BYTES = 32 * MiB
"""torch's default on sm_90 (aten/src/ATen/cuda/CublasHandlePool.cpp)."""


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

    CUDA: multiples of 512 B; from 10 MiB on a segment is a multiple of 2 MiB, of which a rest of up to 1 MiB
    is not split off (c10/cuda/CUDACachingAllocator, ``should_split``). CPU: multiples of 64 B.
    """
    if device.kind != "cuda":
        return math.ceil(tensor_bytes / 64) * 64
    size = math.ceil(tensor_bytes / 512) * 512
    rest = -size % (2 * MiB) if size >= 10 * MiB else 0
    return size + (rest if rest <= MiB else 0)


def unsplit_bytes(allocated: float, device: Device) -> int:
    """What the allocator counts beside ``allocated`` bytes of tensors, as it does not split off small rests."""
    return round(UNSPLIT_SHARE * allocated) if device.kind == "cuda" else 0


def workspace_bytes(device: Device) -> int:
    """What cuBLAS takes from torch's allocator: 32 MiB a handle on sm_90, for forward and backward threads."""
    return 2 * CUBLAS_WORKSPACE_BYTES if device.kind == "cuda" else 0


def overhead_bytes(device: Device, communicators: int) -> int:
    """Held on the device beside tensors: the context, and the buffers of each process group."""
    return device.context_bytes + communicators * device.communicator_bytes


def usable_bytes(device: Device, communicators: int) -> int:
    """What is left for tensors."""
    return device.memory_bytes - overhead_bytes(device, communicators)
