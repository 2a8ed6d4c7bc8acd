"""How much slower matrix products run inside a step than behind a fixed background: power and clocks settled.

The clock of ``autopar.measure.clock`` waits between rounds, so the device cools off. Here the products of
blocks and a pass over memory after each run without a pause for seconds, as in training; each product is
timed by events where it stands.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from autopar.measure.readings import OperatorReading
from cost_models.operators import Work

__all__ = ["SUSTAINED", "sustained_readings"]

SUSTAINED = "sustained "
"""Start of the names of these readings."""
TOKENS = (4096, 8192, 16_384)
FEATURES = ((768, 3072), (1024, 1024), (1024, 2816), (2048, 2048), (2048, 5632), (3072, 8192))
"""(in, out)."""
SECONDS, QUICK_SECONDS = 5.0, 1.0
PASS_ELEMENTS = 2**25
"""About 60 µs on an H100: products take two thirds of the time."""


def sustained_readings(device: torch.device, *, is_quick: bool) -> list[OperatorReading]:
    """Products of blocks in bfloat16, forward and both gradients; GPUs only."""
    if device.type != "cuda":
        return []
    products = [_product(device, *shape) for shape in _shapes(is_quick)]
    passed = torch.randn(2, PASS_ELEMENTS, device=device, dtype=torch.bfloat16)
    times: list[list[float]] = [[] for _ in products]
    for _ in products:
        torch.mm(*products[0])
    until = time.monotonic() + (QUICK_SECONDS if is_quick else SECONDS)
    while time.monotonic() < until:
        events = [_timed(first, second, passed) for first, second in products]
        torch.cuda.synchronize()
        for samples, (start, end) in zip(times, events, strict=True):
            samples.append(start.elapsed_time(end) * 1e-3)
    return [_reading(shape, samples) for shape, samples in zip(_shapes(is_quick), times, strict=True)]


def _shapes(is_quick: bool) -> list[tuple[int, int, int]]:
    """(m, n, k): a linear layer, its input's gradient, its weight's gradient."""
    found = []
    for tokens in TOKENS[:: 2 if is_quick else 1]:
        for rows, columns in FEATURES:
            found += [(tokens, columns, rows), (tokens, rows, columns), (columns, rows, tokens)]
    return found


def _product(device: torch.device, m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    first = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    return first, torch.randn(n, k, device=device, dtype=torch.bfloat16).t()


def _timed(first: Tensor, second: Tensor, passed: Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    torch.add(passed[0], passed[1])
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.mm(first, second)
    end.record()
    return start, end


def _reading(shape: tuple[int, int, int], samples: list[float]) -> OperatorReading:
    """The second half of the samples, when clocks have settled."""
    settled = samples[len(samples) // 2 :]
    m, n, k = shape
    work = Work("matmul", 2.0 * m * n * k, 2.0 * (m * k + k * n), 2.0 * m * n, "bfloat16", m=m, n=n, k=k)
    spread = max(settled) - min(settled)
    return OperatorReading(
        f"{SUSTAINED}product bfloat16 {m}×{n}×{k}", work, statistics.median(settled), spread, len(settled)
    )
