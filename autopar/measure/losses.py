"""The two ends of a language model: cross-entropy over the vocabulary, and the embedding table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autopar.measure.cases import Case, differentiable, repeats_for
from autopar.measure.memory_bound import compiled
from cost_models.operators import Work

__all__ = ["end_cases"]

LOGITS = ((2048, 32_000), (16_384, 32_000), (8192, 50_257), (8192, 128_256))
"""(tokens, vocabulary)."""
TABLES = ((2048, 32_000, 768), (16_384, 32_000, 2048), (8192, 50_257, 1024), (8192, 128_256, 2048))
"""(tokens, vocabulary, width)."""
SMALL_LOGITS = ((64, 512), (256, 2048))
SMALL_TABLES = ((64, 512, 128), (256, 2048, 256))
"""For a CPU."""


def end_cases(device: torch.device, *, is_quick: bool) -> list[Case]:
    """Loss and embedding, forward and backward."""
    is_small = device.type != "cuda"
    logits = SMALL_LOGITS if is_small else LOGITS
    tables = SMALL_TABLES if is_small else TABLES
    count = 1 if is_quick else None
    return [
        *(_cross_entropy(device, *shape) for shape in logits[:count]),
        *(_embedding(device, *shape) for shape in tables[:count]),
    ]


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets)


def _cross_entropy(device: torch.device, tokens: int, vocab: int) -> Case:
    """Logits in bfloat16, the loss in float32: they are read forward, read and written backward."""
    logits_bytes = 2.0 * tokens * vocab
    forward = Work("cross_entropy", 0.0, logits_bytes, 0.0, "bfloat16")
    backward = Work("cross_entropy_backward", 0.0, logits_bytes, logits_bytes, "bfloat16")

    def inputs() -> tuple[Tensor, ...]:
        logits = torch.randn(tokens, vocab, device=device, dtype=torch.bfloat16, requires_grad=True)
        return logits, torch.randint(vocab, (tokens,), device=device)

    return differentiable(
        f"cross entropy {tokens}×{vocab}",
        compiled(_loss, device),
        inputs,
        forward=forward,
        backward=backward,
        repeats=repeats_for(forward, 2),
    )


def _lookup(table: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, table)


def _embedding(device: torch.device, tokens: int, vocab: int, width: int) -> Case:
    """Rows read and written forward; the table's gradient zeroed and rows added backward. Never compiled."""
    rows_bytes = 2.0 * tokens * width
    forward = Work("embedding", 0.0, rows_bytes, rows_bytes, "bfloat16")
    backward = Work("embedding_backward", 0.0, 2 * rows_bytes, 2.0 * vocab * width + rows_bytes, "bfloat16")

    def inputs() -> tuple[Tensor, ...]:
        table = torch.randn(vocab, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        return table, torch.randint(vocab, (tokens,), device=device)

    return differentiable(
        f"embedding {tokens} of {vocab}×{width}",
        _lookup,
        inputs,
        forward=forward,
        backward=backward,
        repeats=repeats_for(backward, 2),
    )
