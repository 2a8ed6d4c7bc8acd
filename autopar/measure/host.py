"""What the host takes to issue work: operators in eager mode, calls and kernels of compiled regions, blocks.

The tensors are so small that the device always waits for the host: the wall time of issuing and finishing
many operators is then the host's.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.measure.readings import HostReading
from autopar.models.llama import LlamaBlock, LlamaConfig, rotations

__all__ = ["BLOCKS", "CHAINS", "EAGER", "host_readings"]

EAGER = "eager chain"
"""Name of the reading of operators issued one by one, forward and backward."""
CHAINS = ("compiled chain forward", "compiled chain backward")
BLOCKS = ("compiled Llama block forward", "compiled Llama block backward")
"""Names of the readings of a compiled block; their ``operators`` are kernels, counted by the profiler."""
LENGTHS = (4, 16)
"""Units (a linear layer and a GELU) of the compiled chains: their difference is the cost of kernels."""
CALLS = 10
"""Calls of a region in one sample: enough that waiting for the last one does not count."""
SAMPLES = 15
WARM_UP_SAMPLES = 2


def host_readings(device: torch.device, *, is_quick: bool) -> list[HostReading]:
    """Eager operators always; compiled regions on a GPU."""
    samples = 5 if is_quick else SAMPLES
    readings = _eager(device, samples)
    if device.type == "cuda":
        for length in LENGTHS[: 1 if is_quick else None]:
            readings += _compiled_chain(device, length, samples)
        readings += _blocks(device, samples)
    return readings


class _Chain(nn.Module):
    """``length`` times a linear layer and a GELU: two kernels a unit forward, three backward."""

    def __init__(self, length: int, device: torch.device) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False, device=device) for _ in range(length))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x), approximate="tanh")
        return x


def _eager(device: torch.device, samples: int, length: int = 16) -> list[HostReading]:
    chain, x = _Chain(length, device), torch.randn(64, 64, device=device, requires_grad=True)
    forward, backward = _forward_backward(device, functools.partial(chain, x), chain, samples)
    operators = (2 * length, 3 * length)
    both = [first + second for first, second in zip(forward, backward, strict=True)]
    return [
        _reading(EAGER, sum(operators), both),
        _reading(f"{EAGER} forward", operators[0], forward),
        _reading(f"{EAGER} backward", operators[1], backward),
    ]


def _compiled_chain(device: torch.device, length: int, samples: int) -> list[HostReading]:
    chain, x = _Chain(length, device), torch.randn(64, 64, device=device, requires_grad=True)
    region = torch.compile(chain, dynamic=False)
    times = _forward_backward(device, functools.partial(region, x), chain, samples)
    counts = (2 * length, 3 * length)
    return [_reading(name, count, each) for name, count, each in zip(CHAINS, counts, times, strict=True)]


def _blocks(device: torch.device, samples: int) -> list[HostReading]:
    """A Llama block under autocast, eager and compiled: what a step of small tensors pays per block."""
    config = LlamaConfig(hidden=128, heads=2, ffn=256)
    block = LlamaBlock(config).to(device)
    x = torch.randn(1, 128, config.hidden, device=device, requires_grad=True)
    cos, sin = rotations(128, 64, 10_000.0, device)
    readings = []
    for name, function in (("eager", block), ("compiled", torch.compile(block, dynamic=False))):

        def run(function: Callable[..., Tensor] = function) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return function(x, cos, sin)

        forward, backward = _forward_backward(device, run, block, samples)
        kernels = _kernels(run, tuple(block.parameters()))
        readings += [
            _reading(f"{name} Llama block forward", kernels[0], forward),
            _reading(f"{name} Llama block backward", kernels[1], backward),
        ]
    return readings


def _kernels(function: Callable[[], Tensor], weights: tuple[Tensor, ...]) -> tuple[int, int]:
    """Kernels that the profiler sees in one forward and one backward; at least 1 each."""
    with _profile() as ahead:
        result = function()
        torch.cuda.synchronize()
    with _profile() as behind:
        torch.autograd.grad(result, weights, torch.ones_like(result))
        torch.cuda.synchronize()
    return _count(ahead), _count(behind)


def _profile() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])


def _count(profile: torch.profiler.profile) -> int:
    """Kernels on the device; calls of the driver and memory operations are none."""
    host_calls = ("cu", "Mem", "Activity", "Command", "Torch-Compiled", "## ")
    names = [(row.key, row.count) for row in profile.key_averages()]
    is_kernel = [
        count
        for name, count in names
        if not name.startswith(host_calls) or name.startswith(("cudnn", "cutlass"))
    ]
    return max(sum(is_kernel), 1)


def _forward_backward(
    device: torch.device, function: Callable[[], Tensor], module: nn.Module, samples: int
) -> tuple[list[float], list[float]]:
    """Seconds of one forward and of one backward, per sample of ``CALLS`` calls."""
    gradient, weights = torch.randn_like(function().detach()), tuple(module.parameters())
    forward_s, backward_s = [], []
    results: list[Tensor] = []
    for _ in range(samples + WARM_UP_SAMPLES):
        forward_s.append(_timed(device, lambda: results.append(function())))
        backward_s.append(_timed(device, lambda: torch.autograd.grad(results.pop(), weights, gradient)))
    return forward_s[WARM_UP_SAMPLES:], backward_s[WARM_UP_SAMPLES:]


def _timed(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of one of ``CALLS`` calls."""
    _wait(device)
    started_s = time.perf_counter()
    for _ in range(CALLS):
        call()
    _wait(device)
    return (time.perf_counter() - started_s) / CALLS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reading(name: str, operators: int, samples: list[float]) -> HostReading:
    tenths = statistics.quantiles(samples, n=10) if len(samples) > 1 else samples * 9
    return HostReading(name, operators, statistics.median(samples), tenths[0], tenths[-1])
