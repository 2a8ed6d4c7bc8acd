"""Fused attention, forward and backward, as ``scaled_dot_product_attention`` picks its kernel."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autopar.measure.cases import Case, differentiable, repeats_for
from cost_models.operators import Work

__all__ = ["AttentionShape", "attention_cases", "work_of"]

SEQUENCES = (512, 1024, 2048, 4096, 8192, 16_384)
HEADS = (8, 32, 128, 384)
"""Batch × heads."""
HEAD_DIMS = (64, 128)
MOST_FLOPS = 1.2e12
"""Of the forward: a few milliseconds."""
MOST_ELEMENTS = 2**28
"""Of the queries."""
MOST_REPEATS = 3
"""An autograd call takes the host about 0.1 ms."""
HEADS_PER_SEQUENCE = 8


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One call: ``heads`` is batch × heads; ``group`` query heads share a key/value head."""

    heads: int
    seq: int
    head_dim: int
    is_causal: bool = True
    group: int = 1

    @property
    def forward_flops(self) -> float:
        """Two products over (query, key) pairs; a causal mask halves them."""
        pairs = self.seq * self.seq * (0.5 if self.is_causal else 1.0)
        return 4.0 * self.heads * pairs * self.head_dim


def attention_cases(device: torch.device, dtype: str, *, is_quick: bool) -> list[Case]:
    """Forward and backward over the grid, from small to large."""
    shapes = sorted(_shapes(device, is_quick), key=lambda shape: shape.forward_flops)
    return [_case(device, dtype, shape) for shape in shapes]


def _shapes(device: torch.device, is_quick: bool) -> Iterator[AttentionShape]:
    if device.type != "cuda":
        for seq in (128,) if is_quick else (128, 256, 512, 1024):
            yield from (AttentionShape(heads, seq, width) for heads in (8, 32) for width in (32, 64, 128))
        return
    for seq in SEQUENCES[:: 2 if is_quick else 1]:
        for heads in HEADS[:: 2 if is_quick else 1]:
            for head_dim in HEAD_DIMS:
                shape = AttentionShape(heads, seq, head_dim)
                if shape.forward_flops <= MOST_FLOPS and heads * seq * head_dim <= MOST_ELEMENTS:
                    yield shape
    for head_dim in HEAD_DIMS:
        yield AttentionShape(128, 2048, head_dim, group=4)
        yield AttentionShape(32, 4096, head_dim, group=8)
        yield AttentionShape(128, 1024, head_dim, is_causal=False)
        yield AttentionShape(32, 4096, head_dim, is_causal=False)


def _case(device: torch.device, dtype: str, shape: AttentionShape) -> Case:
    forward = work_of("attention", dtype, shape, 1.0)
    backward = work_of("attention_backward", dtype, shape, 2.5)
    attend = functools.partial(
        F.scaled_dot_product_attention, is_causal=shape.is_causal, enable_gqa=shape.group > 1
    )
    mask = "causal" if shape.is_causal else "full"
    groups = f" / {shape.group}" if shape.group > 1 else ""
    return differentiable(
        f"attention {dtype} {shape.heads}{groups} × {shape.seq} × {shape.head_dim} {mask}",
        attend,
        lambda: _inputs(device, dtype, shape),
        forward=forward,
        backward=backward,
        repeats=repeats_for(forward, MOST_REPEATS) if device.type == "cuda" else 1,
    )


def _inputs(device: torch.device, dtype: str, shape: AttentionShape) -> tuple[Tensor, ...]:
    """q, k and v as models make them: ``[batch, heads, seq, head_dim]``, a view of ``[batch, seq, …]``."""
    per_sequence = max(HEADS_PER_SEQUENCE, shape.group)
    batch = shape.heads // per_sequence

    def projected(heads: int) -> Tensor:
        size = (batch, shape.seq, heads, shape.head_dim)
        return torch.randn(size, device=device, dtype=getattr(torch, dtype)).transpose(1, 2).requires_grad_()

    return (
        projected(per_sequence),
        projected(per_sequence // shape.group),
        projected(per_sequence // shape.group),
    )


def work_of(family: str, dtype: str, shape: AttentionShape, times: float) -> Work:
    """Reads q, k, v and writes the result; the backward moves and computes ``times`` as much."""
    queries = shape.heads * shape.seq * shape.head_dim * getattr(torch, dtype).itemsize
    return Work(
        family,
        times * shape.forward_flops,
        times * queries * (1 + 2 / shape.group),
        times * queries,
        dtype,
        heads=shape.heads,
        seq=shape.seq,
        head_dim=shape.head_dim,
        queries=shape.heads * shape.seq,
    )
