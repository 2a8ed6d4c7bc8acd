"""Forwards whose results are computed a second time in backward instead of being kept.

| level       | kept between forward and backward                                                    |
| ----------- | ------------------------------------------------------------------------------------ |
| (none)      | whatever autograd saves                                                              |
| `selective` | results of matrix products, attention, convolutions and reducing collectives         |
| `full`      | the arguments alone                                                                  |

A sum over ranks is kept, since repeating it would cost as much as it did; a gather is repeated, since what it
makes is large. (Korthikanti et al., Reducing activation recomputation in large transformer models, 2022.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from autopar.torch_private import kept_operators

__all__ = ["recomputed"]

Forward = Callable[..., Any]


def recomputed(forward: Forward, level: str) -> Forward:
    """``forward``, a function of a module and its inputs, that recomputes at ``level``.

    Random numbers repeat. Where no gradients are wanted it is ``forward`` itself. May be compiled: the graph then
    says which results to keep. Raises ValueError for a level that is neither ``selective`` nor ``full``.
    """
    if level not in ("selective", "full"):
        raise ValueError(f"recomputation is 'selective' or 'full', not '{level}'")
    policy = _keep_products if level == "selective" else _keep_random_on_cpu
    contexts = partial(create_selective_checkpoint_contexts, policy)

    def recomputing(self: nn.Module, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(self, *inputs)
        if level == "full" and not torch.compiler.is_compiling():
            return checkpoint(forward, self, *inputs, use_reentrant=False)
        return checkpoint(forward, self, *inputs, use_reentrant=False, context_fn=contexts)

    return recomputing


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What ``selective`` keeps."""
    is_kept = operator in kept_operators()
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_random_on_cpu(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What ``full`` keeps in a compiled graph: nothing, but results of operators that may draw numbers on a CPU.

    To repeat one of these, torch 2.13 hands the generator's state to the backward graph, and confuses it with the
    mesh of DTensors. On CUDA it goes another way.
    """
    is_random = torch.Tag.nondeterministic_seeded in operator.tags
    tensors = [value for value in args if isinstance(value, Tensor)]
    is_kept = is_random and bool(tensors) and tensors[0].device.type == "cpu"
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
