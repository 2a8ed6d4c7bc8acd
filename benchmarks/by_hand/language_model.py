"""A GPT or Llama in the pieces that an expert compiles one by one: its blocks, and its loss head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autopar.models.gpt import GPT
from autopar.models.llama import Llama, rotations

__all__ = ["LanguageModel", "LossHead", "Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all ways to train have in common."""

    dtype: torch.dtype = torch.bfloat16
    """Of compute; parameters, gradients and optimizer state are float32."""
    recomputes: bool = False
    """Whether blocks keep nothing but their inputs for backward (``torch.utils.checkpoint``)."""
    is_compiled: bool = True
    microbatches: int = 1
    """Slices of a rank's sequences that run one after the other, gradients added up."""


class LanguageModel(nn.Module):
    """``forward(tokens, targets)``: the plain model's loss, from the plain model's own modules.

    ``casts`` says whether each piece makes copies of its parameters in the recipe's dtype. FSDP2 does that by itself.
    """

    def __init__(self, plain: GPT | Llama, recipe: Recipe, *, casts: bool) -> None:
        super().__init__()
        self.dtype = recipe.dtype
        self.tokens = plain.tokens
        self.positions = plain.positions if isinstance(plain, GPT) else None
        self.rotary = None if isinstance(plain, GPT) else plain.config
        self.layers = nn.ModuleList(
            _piece(block, recipe, casts=casts, recomputes=recipe.recomputes) for block in plain.layers
        )
        self.loss_head = _piece(LossHead(plain.norm, plain.head), recipe, casts=casts, recomputes=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, *extra = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, *extra)
        return self.loss_head(x, targets)

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embedded tokens ``[batch, sequence, hidden]``, and what every block takes besides."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(self.places(tokens))
        return (x.to(self.dtype), *self.angles(tokens))

    def places(self, tokens: Tensor) -> Tensor:
        """Positions of this rank's tokens."""
        return torch.arange(tokens.shape[1], device=tokens.device)

    def angles(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Cosines and sines of rotary positions, float32, for a Llama; nothing for a GPT."""
        if self.rotary is None:
            return ()
        head_dim = self.rotary.hidden // self.rotary.heads
        return rotations(tokens.shape[1], head_dim, self.rotary.rope_theta, tokens.device)


class LossHead(nn.Module):
    """Last norm, logits and mean cross-entropy: compiled as one, float32 logits are never written to memory."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = head

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _piece(module: nn.Module, recipe: Recipe, *, casts: bool, recomputes: bool) -> nn.Module:
    if casts and recipe.dtype is not torch.float32:
        module = _Cast(module, recipe.dtype)
    if recomputes:
        module = _Recomputed(module)
    return torch.compile(module) if recipe.is_compiled else module  # type: ignore[return-value]


class _Cast(nn.Module):
    """Runs a module on copies of its float32 parameters in another dtype, made anew in every call.

    So everything runs in bfloat16, as under FSDP2's mixed precision. ``torch.autocast`` would leave norms and the
    residual stream between blocks in float32: twice the bytes, and slower.
    """

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype

    def forward(self, *inputs: Any) -> Any:
        copies = {name: parameter.to(self.dtype) for name, parameter in self.inner.named_parameters()}
        return functional_call(self.inner, copies, inputs)


class _Recomputed(nn.Module):
    """Runs a module a second time in backward instead of keeping what it computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Any:
        return checkpoint(self.inner, *inputs, use_reentrant=False)
