"""Training for a few steps, and what they take: seconds and bytes, of the slowest and the fullest rank."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from autopar.capture import capture
from autopar.cli.memory_meter import MemoryMeter, memory_meter
from autopar.cli.profiling import profiled
from autopar.cli.request import Request, build_source
from autopar.parallel import parallelize

__all__ = ["Trained", "train"]

LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Trained:
    """The same on every rank."""

    step_time_s: float
    """Median step without the first, each as long as on its slowest rank."""
    peak_memory_bytes: int
    """Of the fullest rank."""
    memory_bytes: dict[str, int]
    """What is known of it, by category."""
    memory_measure: str
    losses: list[float]


def train(request: Request, device: torch.device) -> Trained:
    """AdamW steps on the plan's own model and batch; rank 0 prints a line for each. Every rank calls it."""
    _load_libraries(device)
    meter = memory_meter(device)
    built = build_source(request.plan, str(device))
    module = parallelize(built.module, inputs=built.inputs, plan=request.plan, compile=request.compile)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=device.type == "cuda")
    meter.start()
    seconds, losses = [], []
    for step in range(request.steps):
        taken_s, loss = _step(module, optimizer, built.args, built.kwargs, device)
        seconds.append(taken_s)
        losses.append(loss)
        if dist.get_rank() == 0:
            print(f"step {step + 1}/{request.steps}: loss {loss:.6f}, {1e3 * taken_s:.1f} ms", flush=True)
    trained = _over_ranks(seconds, losses, meter, _held_bytes(module, optimizer))
    if request.profile:
        profiled(
            lambda: _step(module, optimizer, built.args, built.kwargs, device), Path(request.profile), device
        )
    return trained


def _load_libraries(device: torch.device) -> None:
    """A step of next to nothing: what a first step loads and opens is no memory of the model's."""
    module, ones = nn.Linear(8, 8, device=device), torch.ones(8, 8, device=device)
    if dist.get_rank() == 0:
        capture(nn.Linear(8, 8), (torch.ones(8, 8),), {})
    optimizer = torch.optim.AdamW(module.parameters(), fused=device.type == "cuda")
    loss = module(ones).sum()
    dist.all_reduce(loss.detach())
    loss.backward()
    optimizer.step()
    _synchronize(device)


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
) -> tuple[float, float]:
    """Seconds and loss of one step."""
    _synchronize(device)
    start_s = time.perf_counter()
    loss = module(*args, **kwargs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _synchronize(device)
    return time.perf_counter() - start_s, loss.item()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _held_bytes(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """What this rank keeps of parameters, their gradients and optimizer state, under the plan's names."""
    parameters = list(module.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "parameters_bytes": _local_bytes([*parameters, *module.buffers()]),
        "gradients_bytes": _local_bytes([p for p in parameters if p.requires_grad]),  # they are of its dtype
        "optimizer_bytes": _local_bytes([state for state in states if isinstance(state, torch.Tensor)]),
    }


def _local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    pieces = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(piece.numel() * piece.element_size() for piece in pieces)


def _over_ranks(
    seconds: list[float], losses: list[float], meter: MemoryMeter, held_bytes: dict[str, int]
) -> Trained:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (seconds, meter.peak_bytes(), {**held_bytes, **meter.more_bytes()}))
    slowest = [max(times) for times in zip(*(each[0] for each in found), strict=True)]
    timed = slowest[1:] or slowest
    _, peak_bytes, memory_bytes = max(found, key=lambda each: each[1])
    return Trained(statistics.median(timed), peak_bytes, memory_bytes, meter.description, losses)
