"""One device: blocks and loss head compiled, bfloat16 copies of float32 parameters, fused AdamW."""

from __future__ import annotations

from autopar.models.gpt import GPT
from autopar.models.llama import Llama

from .language_model import LanguageModel, Recipe
from .trainer import Trainer, adamw

__all__ = ["build"]


def build(plain: GPT | Llama, recipe: Recipe) -> Trainer:
    """A trainer of ``plain`` where it lies."""
    model = LanguageModel(plain, recipe, casts=True)
    return Trainer(model, adamw(plain.parameters()), microbatches=recipe.microbatches)
