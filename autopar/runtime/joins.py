"""How the outputs of microbatches combine into the outputs of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_outputs", "joined", "loss_position"]


def as_outputs(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a root forward returned, one output or several, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def loss_position(outputs: Sequence[Tensor], joins: Sequence[str]) -> int | None:
    """Which output backward starts from: the first scalar that is summed and has a gradient; None without one."""
    for position, (output, join) in enumerate(zip(outputs, joins, strict=True)):
        if join == "sum" and output.ndim == 0 and output.requires_grad:
            return position
    return None


def joined(parts: Sequence[Sequence[Tensor]], joins: Sequence[str]) -> tuple[Tensor, ...]:
    """The outputs of the whole batch from those of each microbatch, in order.

    ``sum`` adds (each microbatch yields its share; in float32 at least), ``cat DIM`` concatenates along a dim.
    """
    return tuple(_join(output, join) for output, join in zip(zip(*parts, strict=True), joins, strict=True))


def _join(parts: tuple[Tensor, ...], join: str) -> Tensor:
    how, _, dim = join.partition(" ")
    if how == "cat":
        return torch.cat(parts, int(dim))
    if how == "same":
        return parts[0]
    if how != "sum":
        raise ValueError(f"outputs join by 'sum', 'cat DIM' or 'same', not '{join}'")
    total = torch.stack(parts)
    if total.is_floating_point():
        return total.sum(0, dtype=torch.promote_types(total.dtype, torch.float32)).to(total.dtype)
    return total.sum(0).to(total.dtype)
