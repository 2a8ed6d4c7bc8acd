"""A GPT-2-like language model: learned positions, LayerNorm, GELU, causal attention, tied head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "GPTAttention", "GPTBlock", "GPTConfig", "GPTFeedForward"]

INITIAL_STD = 0.02  # GPT-2 (Radford et al., 2019)


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Sizes of a GPT. ``ffn`` 0 stands for 4 × ``hidden``."""

    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocab: int = 512
    ffn: int = 0
    context: int = 1024
    """Longest sequence: rows of the position table."""
    dropout: float = 0.0


class GPTAttention(nn.Module):
    """Causal self-attention on ``[batch, sequence, hidden]``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.q = nn.Linear(config.hidden, config.hidden)
        self.k = nn.Linear(config.hidden, config.hidden, bias=False)  # softmax cancels a bias of the keys
        self.v = nn.Linear(config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).flatten(2))


class GPTFeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        ffn = config.ffn or 4 * config.hidden
        self.up = nn.Linear(config.hidden, ffn)
        self.down = nn.Linear(ffn, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class GPTBlock(nn.Module):
    """Attention and feed-forward, each after a LayerNorm and added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.hidden)
        self.attention = GPTAttention(config)
        self.norm_2 = nn.LayerNorm(config.hidden)
        self.feed_forward = GPTFeedForward(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x)))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class GPT(nn.Module):
    """``forward(tokens, targets)``: mean cross-entropy of the next token; targets of −100 do not count.

    ``tokens`` and ``targets`` are int64 ``[batch, sequence]``.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.hidden)
        self.positions = nn.Embedding(config.context, config.hidden)
        self.layers = nn.ModuleList(GPTBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(self._initialise)
        self._shrink_residual_branches()

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def _shrink_residual_branches(self) -> None:
        """Keeps the residual stream's variance independent of depth, as GPT-2 does."""
        std = INITIAL_STD / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
