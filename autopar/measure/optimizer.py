"""A fused AdamW step over parameters of a model's usual sizes."""

from __future__ import annotations

import torch

from autopar.measure.cases import Case, Pass
from cost_models.operators import Work

__all__ = ["BYTES_PER_PARAMETER", "optimizer_cases"]

BYTES_PER_PARAMETER = 28.0
"""Float32 parameter, gradient and two moments read; all but the gradient written."""
SIZES = ((12, 768 * 768), (16, 2048 * 2048), (24, 4096 * 4096))
"""(tensors, elements of each)."""
SMALL_SIZES = ((8, 2**14), (8, 2**18), (16, 2**20))
"""For a CPU."""


def optimizer_cases(device: torch.device, *, is_quick: bool) -> list[Case]:
    """One step each."""
    sizes = SIZES if device.type == "cuda" else SMALL_SIZES
    return [_case(device, *size) for size in (sizes[1:2] if is_quick else sizes)]


def _case(device: torch.device, tensors: int, elements: int) -> Case:
    moved = BYTES_PER_PARAMETER * tensors * elements
    work = Work("optimizer", 0.0, moved * 4 / 7, moved * 3 / 7, "float32")

    def prepare() -> tuple[Pass, ...]:
        parameters = [torch.randn(elements, device=device, requires_grad=True) for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def run() -> None:
            optimizer.step()

        return (Pass(f"AdamW {tensors} × {elements}", work, run, repeats=1),)

    return Case("AdamW", 16.0 * tensors * elements, prepare)
