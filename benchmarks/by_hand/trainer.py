"""The training loop around a model, the same for every way to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Trainer", "adamw"]

LEARNING_RATE = 3e-4


@dataclass(frozen=True, slots=True)
class Trainer:
    """A model at work on one rank."""

    forward: Callable[[Tensor, Tensor], Tensor]
    """Tokens and targets to the loss that ``backward()`` is called on."""
    optimizer: torch.optim.Optimizer
    data_rank: int = 0
    data_size: int = 1
    """Which of how many equal slices of the batch this rank reads."""
    microbatches: int = 1
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Surrounds forward and backward."""
    between: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Surrounds all microbatches but the last: no gradients need be summed over ranks yet."""

    def backward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of the global batch; returns the loss of this rank's slice."""
        losses = []
        for part, is_last in self._parts(tokens, targets):
            with nullcontext() if is_last else self.between(), self.around():
                loss = self.forward(*part) / self.microbatches
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Forward, backward and update."""
        loss = self.backward(tokens, targets)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def mean(self, loss: Tensor) -> float:
        """The loss of the whole batch. All ranks call it."""
        if self.data_size > 1:
            loss = loss.clone()
            dist.all_reduce(loss)
            loss /= self.data_size
        return float(loss)

    def _parts(self, tokens: Tensor, targets: Tensor) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
        mine = [whole.chunk(self.data_size)[self.data_rank] for whole in (tokens, targets)]
        parts = list(zip(*(each.chunk(self.microbatches) for each in mine), strict=True))
        yield from ((part, place == len(parts) - 1) for place, part in enumerate(parts))


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW in one kernel for many parameters."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
