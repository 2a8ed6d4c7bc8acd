"""Fully sharded data parallelism: each rank keeps a part of every parameter, gathered block by block for use."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from autopar.models.gpt import GPT
from autopar.models.llama import Llama

from .language_model import LanguageModel, Recipe
from .trainer import Trainer, adamw

__all__ = ["build"]


def build(plain: GPT | Llama, recipe: Recipe, *, reshards: bool) -> Trainer:
    """A trainer of ``plain``, which every rank holds alike, on all ranks.

    With ``reshards`` blocks are given back after their forward and gathered again for their backward (ZeRO-3);
    without, they stay from forward to backward (ZeRO-2): faster, and a whole bfloat16 copy larger.

    FSDP2's mixed precision gathers parameters in bfloat16 (half the traffic) and averages gradients in float32. It
    must not cast inputs, or the float32 angles of rotary positions would lose their precision.
    """
    model = LanguageModel(plain, recipe, casts=False)
    mesh = init_device_mesh(next(plain.parameters()).device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=recipe.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards)
    if plain.head.weight is not plain.tokens.weight:  # tied weights must be sharded as one: by the root
        fully_shard(plain.tokens, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards)
        # The head's backward follows its forward at once.
        fully_shard(model.loss_head, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return Trainer(
        model, adamw(plain.parameters()), dist.get_rank(), dist.get_world_size(), recipe.microbatches
    )
