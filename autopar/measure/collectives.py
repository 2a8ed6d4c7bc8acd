"""Collectives between the devices of this node: one process per device, every size of group.

On GPUs they speak NCCL, elsewhere gloo.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.measure.processes import run_in_processes
from autopar.measure.progress import Progress
from autopar.measure.readings import LinkReading
from autopar.torch_private import all_gather_now, all_to_all_now, reduce_scatter_now
from cost_models.operators import FRESH_FROM_BYTES

__all__ = [
    "COLLECTIVES",
    "LinkOutcome",
    "by_collective",
    "group_sizes",
    "links_here",
    "measure_links",
    "wire_bytes",
]

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
SIZES_BYTES = tuple(2**power for power in range(10, 31, 2))
"""Of the whole tensor: 1 KiB to 1 GiB."""
GLOO_SIZES_BYTES = (
    *(2**power for power in range(10, 25, 2)),
    FRESH_FROM_BYTES - 2**16,
    FRESH_FROM_BYTES,
    2**26,
)
"""1 KiB to 64 MiB, and both sides of where buffers begin to cost their pages."""
GLOO_VISITS = 3
"""Times that gloo's calls are measured, all in turn: what else a machine does comes and goes."""
SAMPLES = 12
CALLS_BELOW_BYTES = ((2**18, 10), (2**24, 4))
"""Calls in one sample: several of what is short."""


@dataclass(frozen=True, slots=True)
class LinkOutcome:
    """What rank 0 brings back."""

    readings: tuple[LinkReading, ...]
    communicator_bytes: int
    """Device memory that the first collective of one group took; 0 on a CPU."""


def group_sizes(devices: int) -> tuple[int, ...]:
    """2, 4, 8… and all."""
    sizes = [2**power for power in range(1, devices.bit_length()) if 2**power <= devices]
    return tuple(sorted({*sizes, devices} - {1}))


def measure_links(device_type: str, devices: int, *, is_quick: bool = False) -> LinkOutcome:
    """Times every collective on groups of 2 to ``devices`` ranks, in processes of their own; nothing for one device.

    Raises LaunchError when a process fails.
    """
    if devices < 2:
        return LinkOutcome((), 0)
    return run_in_processes(
        links_here, (is_quick,), device_type=device_type, processes=devices, progress=lambda *_: None
    )


def links_here(device: torch.device, progress: Progress, is_quick: bool) -> LinkOutcome:
    """The same among the processes that run already. Every rank calls it; rank 0's readings count."""
    readings: list[LinkReading] = []
    sizes_of_groups = group_sizes(dist.get_world_size())
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in sizes_of_groups}
    communicator_bytes = _communicator_bytes(device)
    is_gloo = device.type != "cuda"
    for done, (ranks, group) in enumerate(groups.items(), start=1):
        if dist.get_rank() < ranks:
            visits = [
                _group_readings(ranks, group, device, is_quick)
                for _ in range(GLOO_VISITS if is_gloo and not is_quick else 1)
            ]
            readings += [_middle(each) for each in zip(*visits, strict=True)]
        dist.barrier()
        progress("links", done, len(groups))
    return LinkOutcome(tuple(readings), communicator_bytes)


def _group_readings(ranks: int, group: Any, device: torch.device, is_quick: bool) -> list[LinkReading]:
    sizes = SIZES_BYTES if device.type == "cuda" else GLOO_SIZES_BYTES
    return [
        _reading(collective, ranks, size, group, device)
        for collective in (COLLECTIVES if ranks == 2 else COLLECTIVES[:-1])
        for size in sizes[:: 2 if is_quick else 1]
    ]


def _middle(visits: Sequence[LinkReading]) -> LinkReading:
    """The median of several readings of the same."""
    return replace(visits[0], seconds=statistics.median(reading.seconds for reading in visits))


def _communicator_bytes(device: torch.device) -> int:
    """Device memory that a first collective takes."""
    tensor = torch.zeros(1024, device=device)
    if device.type != "cuda":
        dist.all_reduce(tensor)
        return 0
    before = torch.cuda.mem_get_info(device)[0]
    dist.all_reduce(tensor)
    torch.cuda.synchronize(device)
    return max(before - torch.cuda.mem_get_info(device)[0], 0)


def _reading(collective: str, ranks: int, size_bytes: int, group: Any, device: torch.device) -> LinkReading:
    """``size_bytes`` is the whole tensor: gathered, before it is scattered, or sent."""
    call = _call(collective, ranks, size_bytes, group, device)
    calls = next((count for limit, count in CALLS_BELOW_BYTES if size_bytes <= limit), 1)
    for _ in range(3):
        call()
    samples = [_sample(call, calls, device, group) for _ in range(SAMPLES)]
    slowest = torch.tensor(statistics.median(samples), device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    return LinkReading(collective, ranks, wire_bytes(collective, ranks, size_bytes), float(slowest))


def wire_bytes(collective: str, ranks: int, size_bytes: int) -> float:
    """What each rank puts on the wire for a whole tensor of ``size_bytes`` (ring)."""
    if collective == "send":
        return float(size_bytes)
    once = size_bytes * (ranks - 1) / ranks
    return 2.0 * once if collective == "all_reduce" else once


def _call(
    collective: str, ranks: int, size_bytes: int, group: Any, device: torch.device
) -> Callable[[], object]:
    """One collective on bfloat16 (gloo: float32) tensors allocated here."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    elements = size_bytes // dtype.itemsize // ranks * ranks
    whole = torch.zeros(elements, device=device, dtype=dtype).normal_()
    part = whole[: elements // ranks].clone()
    if collective == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if collective == "all_gather":
        return lambda: all_gather_now(part, ranks, group.group_name)
    if collective == "reduce_scatter":
        return lambda: reduce_scatter_now(whole, ranks, group.group_name)
    if collective == "all_to_all":
        return lambda: all_to_all_now(whole, ranks, group.group_name)
    return lambda: _send(whole, group)


def _send(tensor: Tensor, group: Any) -> None:
    """Rank 0 sends, rank 1 receives."""
    if dist.get_rank() == 0:
        dist.send(tensor, 1, group=group)
    else:
        dist.recv(tensor, 0, group=group)


def _sample(call: Callable[[], object], calls: int, device: torch.device, group: Any) -> float:
    """Seconds of one call, of several in a row; all ranks start together."""
    dist.barrier(group=group)
    if device.type != "cuda":
        started_s = time.perf_counter()
        _repeat(call, calls)
        return (time.perf_counter() - started_s) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    _repeat(call, calls)
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) * 1e-3 / calls


def _repeat(call: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        call()


def by_collective(readings: Sequence[LinkReading]) -> dict[str, dict[int, list[LinkReading]]]:
    """Readings by collective and number of ranks, ascending in bytes."""
    table: dict[str, dict[int, list[LinkReading]]] = {}
    for reading in sorted(readings, key=lambda reading: (reading.ranks, reading.wire_bytes)):
        table.setdefault(reading.collective, {}).setdefault(reading.ranks, []).append(reading)
    return table
