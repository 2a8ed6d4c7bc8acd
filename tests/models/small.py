"""Small modules for tests of ``autopar.parallelize``: one property each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TOKENS, WIDTH, VOCAB = 8, 8, 16, 32


class Block(nn.Module):
    """Feed-forward after a norm, with dropout where asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class Language(nn.Module):
    """``forward(tokens, targets)``: mean cross-entropy; the head is tied to the embedding."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def features(self, tokens: Tensor) -> Tensor:
        """The input of the head, ``[batch, sequence, width]``."""
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.features(tokens)).flatten(0, 1), targets.flatten())


class Outputs(Language):
    """Returns a dict of a loss, logits and a tuple."""

    def forward(self, tokens: Tensor, targets: Tensor) -> dict[str, object]:  # type: ignore[override]
        features = self.features(tokens)
        logits = self.head(features)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return {"loss": loss, "logits": logits, "more": (features, logits.argmax(-1))}


class Logits(Language):
    """Returns logits alone; the loss is the user's own."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.features(tokens))


class Keywords(Language):
    """Takes its batch as a dict, and a keyword that may be left out."""

    def forward(self, batch: dict[str, Tensor], *, weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
        loss = super().forward(batch["tokens"], batch["targets"])
        return loss if weight is None else loss * weight


class Normalized(nn.Module):
    """Has batch statistics: ``forward(x, targets)`` on ``[batch, width]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)  # the statistics cancel a bias
        self.norm = nn.BatchNorm1d(WIDTH)
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.last(self.norm(self.first(x)).relu()), targets)


class Scaled(nn.Module):
    """Has a buffer that the forward reads, one that state dicts leave out, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.last = nn.Linear(WIDTH, 4)
        self.register_buffer("mean", torch.randn(WIDTH))
        self.register_buffer("spread", torch.rand(WIDTH) + 1, persistent=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        x = (x - self.mean) / self.spread
        return F.cross_entropy(self.last(self.frozen(self.first(x).relu()).relu()), targets)


class Branching(Language):
    """Cannot be captured: its control flow depends on the data."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        if tokens.sum() > 0:
            return super().forward(tokens, targets)
        return super().forward(targets, tokens)


def token_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and targets ``[8, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(VOCAB, (BATCH, TOKENS + 1), generator=generator)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def vector_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors ``[8, 16]`` and targets ``[8]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, WIDTH, generator=generator), torch.randint(4, (BATCH,), generator=generator)
