"""Models whose stages or microbatches are harder than a language model's: one property each, at most."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.small import VOCAB, WIDTH, Block, token_batch, vector_batch

LAYERS = 4


class Stack(nn.Module):
    """``forward(tokens, targets)``: four blocks, and a head of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def features(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return x

    def entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.entropy(self.features(tokens), targets)


class Packed(Stack):
    """Returns more than its loss."""

    def forward(self, tokens: Tensor, targets: Tensor) -> dict[str, object]:  # type: ignore[override]
        x = self.features(tokens)
        return {"logits": self.head(x), "loss": self.entropy(x, targets), "best": (self.head(x).argmax(-1),)}


class SeveralLosses(Stack):
    """A cross-entropy, a weighted mean of squares and a norm, added."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.features(tokens)
        kinds = F.cross_entropy(self.head(x)[:, 0], targets[:, 0] % 3, ignore_index=2, label_smoothing=0.1)
        return (
            self.entropy(x, targets) + 0.1 * kinds + 0.01 * x.square().mean() + 0.1 * F.mse_loss(x, x.tanh())
        )


class MeanLoss(Stack):
    """The mean of losses by token, reduced by hand."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.features(tokens)).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="none").mean()


class MaskedMean(Stack):
    """The mean over the tokens that count, divided by hand."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.features(tokens)).flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        counts = (targets.flatten() > 3).to(losses.dtype)
        return (losses * counts).sum() / counts.sum()


class TiedThrice(Stack):
    """One weight in the first, the middle and the last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == 1:
                x = x + F.linear(F.linear(x, self.tokens.weight).softmax(-1), self.tokens.weight.t())
        return self.entropy(x, targets)


class Frozen(Stack):
    """Embedding and first blocks are frozen, so that no gradient goes back to the first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens.requires_grad_(False)
        self.blocks[:2].requires_grad_(False)


class FrozenEnd(Stack):
    """The last blocks and the head are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.head.requires_grad_(False)
        self.blocks[2:].requires_grad_(False)


class Unused(Stack):
    """Has parameters that nothing reads, some in blocks of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.lonely = nn.Parameter(torch.ones(3))
        self.blocks[1].spare = nn.Linear(WIDTH, WIDTH)


class Buffers(Stack):
    """A buffer that several stages read, one of whole numbers, and one that state dicts leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.rand(WIDTH) + 0.5)
        self.register_buffer("order", torch.randperm(WIDTH))
        self.register_buffer("shift", torch.randn(WIDTH), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) * self.gain
        for block in self.blocks:
            x = block(x) * self.gain + self.shift
        return self.entropy(x[..., self.order], targets)


class LateInput(Stack):
    """Whole numbers that only the last stage reads, by keyword and nested."""

    def forward(self, tokens: Tensor, *, late: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        x = self.features(tokens) + self.tokens(late["more"])
        return self.entropy(x, late["targets"])


class Skipping(Stack):
    """A U-Net's skips: late blocks read what early ones made."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens)
        made = []
        for block in self.blocks[:2]:
            x = block(x)
            made.append(x)
        for block in self.blocks[2:]:
            x = block(x + made.pop())
        return self.entropy(x, targets)


class Batched(nn.Module):
    """Batch statistics: a microbatch has others than the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.last(self.norm(self.first(x)).relu()), targets)


class WithoutLoss(Stack):
    """Returns logits alone."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.features(tokens))


class OneBlock(Stack):
    """One block, of which stages can be made only with what is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.blocks[:1]


def batch_of(kind: type[nn.Module], seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, object]]:
    """Arguments of a model's forward."""
    tokens, targets = token_batch(seed)
    if kind is Batched:
        return vector_batch(seed), {}
    if kind is LateInput:
        return (tokens,), {"late": {"targets": targets, "more": tokens.flip(0)}}
    if kind is WithoutLoss:
        return (tokens,), {}
    return (tokens, targets), {}
