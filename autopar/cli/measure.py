"""Training for a few steps, and what they take: seconds and bytes, of the slowest and the fullest rank."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from autopar.capture import capture
from autopar.cli.memory_meter import MemoryMeter, memory_meter
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
    return _over_ranks(seconds, losses, meter)


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


def _over_ranks(seconds: list[float], losses: list[float], meter: MemoryMeter) -> Trained:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (seconds, meter.peak_bytes()))
    slowest = [max(times) for times in zip(*(each[0] for each in found), strict=True)]
    timed = slowest[1:] or slowest
    peak_bytes = max(each[1] for each in found)
    return Trained(statistics.median(timed), peak_bytes, meter.description, losses)
