"""Modules as users write them, and tiny configurations of the models that capture must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.models import parse_model

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class FusedBlock(nn.Module):
    """A block with fused q, k and v, split by hand, and a mask made in its forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).split(width, dim=2)
        q, k, v = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        mask = torch.triu(torch.full((tokens, tokens), float("-inf"), device=x.device), diagonal=1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).contiguous().view(batch, tokens, width))
        return x + self.mlp(x)


class TwoTowers(nn.Module):
    """Two encoders of different depth and a symmetric contrastive loss."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.left_tokens = nn.Embedding(50, width)
        self.right_tokens = nn.Embedding(60, width)
        self.left = nn.ModuleList(FusedBlock(width, 4) for _ in range(2))
        self.right = nn.ModuleList(FusedBlock(width, 4) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x, y = self.left_tokens(left), self.right_tokens(right)
        for block in self.left:
            x = block(x)
        for block in self.right:
            y = block(y)
        x, y = F.normalize(x.mean(1), dim=-1), F.normalize(y.mean(1), dim=-1)
        similarity = x @ y.t() * self.scale.exp()
        targets = torch.arange(similarity.shape[0], device=similarity.device)
        return (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.t(), targets)) / 2


class Plain(nn.Module):
    """No repeated blocks; weights written down in the forward, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.second = nn.Linear(6, 3)
        self.register_buffer("shift", torch.ones(6), persistent=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 0.5], device=x.device)
        return F.cross_entropy(self.second(torch.tanh(self.first(x)) + self.shift), targets, weight=weights)


def _family(text: str) -> Callable[[], Case]:
    def make() -> Case:
        built = parse_model(text).build(global_batch=4, seq_len=12, device="cpu", seed=3)
        return built.module, built.args, built.kwargs

    return make


def _without_dropout(model: nn.Module) -> nn.Module:
    for each in model.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return model


def _tokens(seed: int, bound: int = 64) -> Tensor:
    return torch.randint(bound, (2, 12), generator=torch.Generator().manual_seed(seed))


def hugging_face(class_name: str, **sizes: Any) -> nn.Module:
    """A tiny model of transformers with seeded weights and no dropout."""
    import transformers

    transformers.logging.set_verbosity_error()
    model_class = getattr(transformers, class_name)
    torch.manual_seed(5)
    return _without_dropout(model_class(model_class.config_class(**sizes)))


def _gpt2() -> Case:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "attn_pdrop": 0.0, "use_cache": False}
    model = hugging_face("GPT2LMHeadModel", **sizes, bos_token_id=0, eos_token_id=0)
    return model, (), {"input_ids": _tokens(1), "labels": _tokens(2)}


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _llama() -> Case:
    model = hugging_face("LlamaForCausalLM", **BERT, num_key_value_heads=2, vocab_size=64, use_cache=False)
    return model, (), {"input_ids": _tokens(1), "labels": _tokens(2)}


def _bert() -> Case:
    model = hugging_face("BertForMaskedLM", **BERT, vocab_size=64, attention_probs_dropout_prob=0.0)
    labels = _tokens(2)
    labels[0, 3:] = -100
    mask = (torch.arange(12) < torch.tensor([[12], [7]])).long()
    return model, (), {"input_ids": _tokens(1), "attention_mask": mask, "labels": labels}


def _vit() -> Case:
    model = hugging_face("ViTForImageClassification", **BERT, image_size=16, patch_size=8, num_labels=3)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model, (), {"pixel_values": pixels, "labels": torch.tensor([0, 2])}


def _towers() -> Case:
    torch.manual_seed(7)
    return TwoTowers(), (_tokens(1, 50), _tokens(2, 60)[:, :9].contiguous()), {}


def _plain() -> Case:
    torch.manual_seed(7)
    return Plain(), (torch.randn(4, 8),), {"targets": torch.tensor([0, 1, 2, 1])}


CASES: dict[str, Callable[[], Case]] = {
    "gpt": _family("gpt:layers=3,hidden=32,heads=4,vocab=64"),
    "llama": _family("llama:layers=3,hidden=32,heads=4,kv_heads=2,vocab=64"),
    "mlp": _family("mlp:layers=3,hidden=16"),
    "GPT2LMHeadModel": _gpt2,
    "LlamaForCausalLM": _llama,
    "BertForMaskedLM": _bert,
    "ViTForImageClassification": _vit,
    "two towers": _towers,
    "plain": _plain,
}
"""Name and maker of a module on the cpu with inputs, dropout off."""
