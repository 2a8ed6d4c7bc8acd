"""Kernels that only run operator by operator: what compilation would fuse, vectorise or avoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autopar.measure.cases import Case, differentiable, plain, repeats_for
from cost_models.operators import Work

__all__ = ["eager_cases"]

SHAPES = ((4, 2048, 16), (16, 1024, 16), (8, 2048, 32))
"""(sequences, tokens of each, heads)."""
SMALL_SHAPES = ((2, 64, 4),)
HEAD_DIM = 64
LOGITS = ((4096, 32_000), (16_384, 32_000), (8192, 50_257), (4096, 128_256))
"""(tokens, vocabulary)."""
SMALL_LOGITS = ((64, 512), (256, 2048))
MOST_REPEATS = 2


def eager_cases(device: torch.device, *, is_quick: bool) -> list[Case]:
    """Products with a broadcast tensor of another dtype, joins, and the loss in float32."""
    is_small = device.type != "cuda"
    shapes, logits = (SMALL_SHAPES, SMALL_LOGITS) if is_small else (SHAPES, LOGITS)
    count = 1 if is_quick else None
    return [
        *(_broadcast(device, *shape) for shape in shapes[:count]),
        *(_join(device, *shape) for shape in shapes[:count]),
        *(_loss(device, *shape) for shape in logits[:count]),
    ]


def _heads(device: torch.device, batch: int, seq: int, heads: int) -> Tensor:
    """``[batch, heads, seq, head_dim]`` as models make it: a view of ``[batch, seq, …]``."""
    x = torch.randn(batch, seq, heads, HEAD_DIM, device=device, dtype=torch.bfloat16)
    return x.transpose(1, 2)


def _broadcast(device: torch.device, batch: int, seq: int, heads: int) -> Case:
    elements = batch * seq * heads * HEAD_DIM
    work = Work("strided", 0.0, 2.0 * elements, 4.0 * elements, "float32")

    def prepare() -> tuple:  # type: ignore[type-arg]
        cos = torch.randn(seq, HEAD_DIM, device=device)
        sets = [(_heads(device, batch, seq, heads), cos) for _ in range(repeats_for(work, MOST_REPEATS))]
        return (plain(f"broadcast product {batch}×{heads}×{seq}", torch.mul, sets, work),)

    return Case("broadcast product", 8.0 * elements, prepare)


def _join(device: torch.device, batch: int, seq: int, heads: int) -> Case:
    elements = batch * seq * heads * HEAD_DIM
    work = Work("join", 0.0, 2.0 * elements, 2.0 * elements, "bfloat16")

    def halves(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((first, second), dim=-1)

    def prepare() -> tuple:  # type: ignore[type-arg]
        whole = [_heads(device, batch, seq, heads) for _ in range(repeats_for(work, MOST_REPEATS))]
        sets = [tuple(x.chunk(2, dim=-1)) for x in whole]
        return (plain(f"join {batch}×{heads}×{seq}", halves, sets, work),)

    return Case("join", 8.0 * elements, prepare)


def _loss(device: torch.device, tokens: int, vocab: int) -> Case:
    """Float32 logits: log-probabilities are written, their gradient zeroed, and read again."""
    size = 4.0 * tokens * vocab
    forward = Work("log_softmax", 0.0, size, size, "float32")
    backward = Work("log_softmax_backward", 0.0, 2 * size, 2 * size, "float32")

    def inputs() -> tuple[Tensor, ...]:
        logits = torch.randn(tokens, vocab, device=device, requires_grad=True)
        return logits, torch.randint(vocab, (tokens,), device=device)

    return differentiable(
        f"eager cross entropy {tokens}×{vocab}",
        F.cross_entropy,
        inputs,
        forward=forward,
        backward=backward,
        repeats=1,
    )
