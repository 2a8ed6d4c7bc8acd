"""One device: blocks and loss head compiled, bfloat16 copies of float32 parameters, fused AdamW."""

from __future__ import annotations

import torch

from autopar.models.gpt import GPT
from autopar.models.llama import Llama

from .language_model import LanguageModel, Recipe
from .trainer import Trainer, adamw

__all__ = ["build"]


def build(plain: GPT | Llama, recipe: Recipe, *, by_autocast: bool = False) -> Trainer:
    """A trainer of ``plain`` where it lies; with ``by_autocast`` products alone run in the recipe's dtype."""
    model = LanguageModel(plain, recipe, casts=not by_autocast)
    device = next(plain.parameters()).device
    forward = torch.autocast(device.type, recipe.dtype)(model) if by_autocast else model
    return Trainer(forward, adamw(plain.parameters()), microbatches=recipe.microbatches)
