"""A Llama-like language model: RMSNorm, rotary positions, grouped key/value heads, SwiGLU, untied head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Llama", "LlamaAttention", "LlamaBlock", "LlamaConfig", "LlamaFeedForward", "rotate", "rotations"]

INITIAL_STD = 0.02  # Llama (Touvron et al., 2023) and its Hugging Face configuration


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a Llama; ``kv_heads`` 0 means ``heads``, ``ffn`` 0 means 8/3 × ``hidden`` rounded up to 64."""

    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 0
    ffn: int = 0
    vocab: int = 512
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0


def rotations(sequence: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, float32 ``[sequence, head_dim]`` each (Su et al., 2021)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(sequence, device=device, dtype=torch.float32), theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates ``[batch, heads, sequence, head_dim]`` by the angles of its positions, in x's own dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class LlamaAttention(nn.Module):
    """Causal self-attention on ``[batch, sequence, hidden]`` whose key/value heads serve groups of heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden // config.heads
        self.is_grouped = config.kv_heads not in (0, config.heads)
        self.dropout = config.dropout
        kv_width = (config.kv_heads or config.heads) * self.head_dim
        self.q = nn.Linear(config.hidden, config.hidden, bias=False)
        self.k = nn.Linear(config.hidden, kv_width, bias=False)
        self.v = nn.Linear(config.hidden, kv_width, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = rotate(self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2), cos, sin)
        k = rotate(self.k(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2), cos, sin)
        v = self.v(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=self.is_grouped
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class LlamaFeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        ffn = config.ffn or -(-8 * config.hidden // 3 // 64) * 64
        self.gate = nn.Linear(config.hidden, ffn, bias=False)
        self.up = nn.Linear(config.hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Attention and feed-forward, each after an RMSNorm and added to its input."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm_1 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attention = LlamaAttention(config)
        self.norm_2 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.feed_forward = LlamaFeedForward(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), cos, sin))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class Llama(nn.Module):
    """``forward(tokens, targets)``: mean cross-entropy of the next token; targets of −100 do not count.

    ``tokens`` and ``targets`` are int64 ``[batch, sequence]``.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        head_dim = self.config.hidden // self.config.heads
        cos, sin = rotations(tokens.shape[1], head_dim, self.config.rope_theta, tokens.device)
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
