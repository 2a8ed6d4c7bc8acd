"""Data parallelism: every rank holds the whole model, and gradients are averaged in buckets during backward."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from autopar.models.gpt import GPT
from autopar.models.llama import Llama

from .language_model import LanguageModel, Recipe
from .trainer import Trainer, adamw

__all__ = ["build"]


def build(plain: GPT | Llama, recipe: Recipe) -> Trainer:
    """A trainer of ``plain``, which every rank holds alike, on the default process group.

    Gradients are averaged in float32: parameters are float32, and each block casts them by itself.
    """
    model = LanguageModel(plain, recipe, casts=True)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    return Trainer(
        parallel,
        adamw(plain.parameters()),
        dist.get_rank(),
        dist.get_world_size(),
        recipe.microbatches,
        between=parallel.no_sync,
    )
