"""A contrastive text-and-image model as a user might write it: a fused projection split in three ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TOKENS, PATCHES, WIDTH, HEADS, VOCAB = 8, 16, 8, 32, 4, 64


class SplitAttention(nn.Module):
    """Queries, keys and values by ``split``; causal."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = self.qkv(x).split(w, dim=-1)
        q, k, v = (t.view(b, s, HEADS, w // HEADS).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, s, w))


class ChunkAttention(SplitAttention):
    """The same by ``chunk``, with the scores written out."""

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, s, HEADS, -1).permute(0, 2, 1, 3) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (w // HEADS) ** -0.5
        y = scores.softmax(dim=-1) @ v
        return self.proj(y.permute(0, 2, 1, 3).reshape(b, s, w))


class ViewAttention(SplitAttention):
    """The same by ``view(…, 3, heads, head)``."""

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        qkv = self.qkv(x).view(b, s, 3, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, s, w))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TwoTower(nn.Module):
    """``forward(tokens, patches)``: symmetric contrastive loss (Radford et al., 2021) over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.word_positions = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.text = nn.ModuleList([Block(SplitAttention()), Block(ChunkAttention())])
        self.patches = nn.Linear(12, WIDTH)
        self.patch_positions = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
        self.image = nn.ModuleList([Block(ViewAttention()), Block(ViewAttention())])
        self.text_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        text = self.words(tokens) + self.word_positions
        for block in self.text:
            text = block(text)
        image = self.patches(patches) + self.patch_positions
        for block in self.image:
            image = block(image)
        text = F.normalize(self.text_head(text[:, -1]), dim=-1)
        image = F.normalize(self.image_head(image.mean(dim=1)), dim=-1)
        logits = self.scale.exp() * text @ image.t()
        pairs = torch.arange(logits.shape[0], device=logits.device)
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.t(), pairs)) / 2


def factory() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model and one global batch of token rows and image patches."""
    return TwoTower(), (torch.randint(VOCAB, (BATCH, TOKENS)), torch.randn(BATCH, PATCHES, 12))
