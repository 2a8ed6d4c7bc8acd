"""Tensor and sequence parallelism: every matrix is cut by columns or rows, what lies between by the sequence.

Megatron-LM's scheme (Shoeybi et al., 2019; Korthikanti et al., 2022) by ``parallelize_module``: the residual
stream and the norms hold a slice of the sequence; it is gathered before the projections whose columns are cut, and
what those whose rows are cut make is summed and scattered. The vocabulary is cut too, and so is the loss.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from autopar.models.gpt import GPT
from autopar.models.llama import Llama

from .language_model import LanguageModel, Recipe
from .trainer import Trainer, adamw

__all__ = ["build"]

SEQUENCE = Shard(1)
"""Activations are ``[batch, sequence, hidden]``."""


def build(plain: GPT | Llama, recipe: Recipe) -> Trainer:
    """A trainer of ``plain``, which every rank holds alike, on all ranks. Every rank reads the whole batch."""
    mesh = init_device_mesh(next(plain.parameters()).device.type, (dist.get_world_size(),))
    cut(plain, mesh)
    model = TensorParallelModel(plain, recipe, mesh)
    return Trainer(model, adamw(plain.parameters()), microbatches=recipe.microbatches, around=loss_parallel)


def cut(plain: GPT | Llama, mesh: DeviceMesh) -> None:
    """Shards every parameter in place."""
    for block in plain.layers:
        parallelize_module(block, mesh, block_plan(plain))
        if isinstance(plain, GPT):
            block.attention.heads //= mesh.size()  # a rank's projections make its own heads alone
    outer = {
        "tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=SEQUENCE, output_layouts=Shard(-1), use_local_output=False),
    }
    if isinstance(plain, GPT):
        outer["positions"] = SequenceParallel(sequence_dim=0, use_local_output=True)
    is_tied = plain.head.weight is plain.tokens.weight
    parallelize_module(plain, mesh, outer)
    if is_tied:  # both are cut by the vocabulary, but no longer one parameter
        plain.head.weight = plain.tokens.weight


def block_plan(plain: GPT | Llama) -> dict[str, object]:
    """How a block's modules are cut."""
    column = ColwiseParallel()
    row = RowwiseParallel(output_layouts=SEQUENCE)
    angles = () if isinstance(plain, GPT) else (None, None)
    gathered = {
        "input_layouts": (SEQUENCE, *angles),
        "desired_input_layouts": (Replicate(), *angles),
    }
    inner = ("up",) if isinstance(plain, GPT) else ("gate", "up")
    return {
        "norm_1": SequenceParallel(),
        "attention": PrepareModuleInput(**gathered),
        **{f"attention.{name}": column for name in ("q", "k", "v")},
        "attention.out": row,
        "norm_2": SequenceParallel(),
        "feed_forward": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)),
        **{f"feed_forward.{name}": column for name in inner},
        "feed_forward.down": row,
    }


class TensorParallelModel(LanguageModel):
    """The model on this rank's slice of the sequence."""

    def __init__(self, plain: GPT | Llama, recipe: Recipe, mesh: DeviceMesh) -> None:
        super().__init__(plain, recipe, casts=True)
        self.mesh = mesh

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss = super().forward(tokens, targets)
        return loss.to_local() if isinstance(loss, DTensor) else loss

    def places(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1] // self.mesh.size()
        first = length * self.mesh.get_local_rank()
        return torch.arange(first, first + length, device=tokens.device)
