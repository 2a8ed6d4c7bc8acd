"""How a dim is cut into shards: ``blocks`` equal runs, each cut into ``shards`` equal pieces.

A dim of ``blocks × shards × piece`` elements is viewed as ``(blocks, shards, piece)``; shard k holds the
pieces ``[:, k, :]``. With one block that is the usual contiguous shard; with three it is what a fused
query-key-value projection needs, where every rank wants its heads of each of the three.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["join_shards", "local_shard", "pad_shard", "split_shards"]


def split_shards(tensor: Tensor, dim: int, shards: int, blocks: int) -> Tensor:
    """View ``tensor`` as its ``shards`` shards along ``dim``, stacked in a new leading dim.

    Shape ``(…, blocks × shards × piece, …)`` → ``(shards, …, blocks × piece, …)``, contiguous.

    Raises ValueError when the dim does not divide evenly.
    """
    dim %= tensor.ndim
    length = tensor.shape[dim]
    if length % (shards * blocks):
        raise ValueError(
            f"dim {dim} of shape {tuple(tensor.shape)} does not divide into {blocks} blocks × {shards} shards"
        )
    shape = tensor.shape
    cut = tensor.reshape(*shape[:dim], blocks, shards, length // (shards * blocks), *shape[dim + 1 :])
    stacked = cut.movedim(dim + 1, 0)
    return stacked.reshape(shards, *shape[:dim], length // shards, *shape[dim + 1 :]).contiguous()


def join_shards(stacked: Tensor, dim: int, blocks: int) -> Tensor:
    """Undo ``split_shards``: ``(shards, …, blocks × piece, …)`` → ``(…, blocks × shards × piece, …)``."""
    shards, *shape = stacked.shape
    dim %= len(shape)
    cut = stacked.reshape(shards, *shape[:dim], blocks, shape[dim] // blocks, *shape[dim + 1 :])
    return cut.movedim(0, dim + 1).reshape(*shape[:dim], shards * shape[dim], *shape[dim + 1 :])


def local_shard(tensor: Tensor, dim: int, shards: int, blocks: int, index: int) -> Tensor:
    """Return shard ``index`` of ``shards`` as a tensor of its own, so that the whole one can be freed.

    Raises ValueError when the dim does not divide evenly.
    """
    dim %= tensor.ndim
    length = tensor.shape[dim]
    if length % (shards * blocks):
        raise ValueError(
            f"dim {dim} of shape {tuple(tensor.shape)} does not divide into {blocks} blocks × {shards} shards"
        )
    cut = tensor.unflatten(dim, (blocks, shards, length // (shards * blocks))).select(dim + 1, index)
    return cut.clone(memory_format=torch.contiguous_format).flatten(dim, dim + 1)


def pad_shard(piece: Tensor, dim: int, shards: int, blocks: int, index: int) -> Tensor:
    """Undo ``local_shard`` with zeros where the other shards were."""
    dim %= piece.ndim
    cut = piece.unflatten(dim, (blocks, piece.shape[dim] // blocks)).unsqueeze(dim + 1)
    padding = [0, 0] * (cut.ndim - dim - 2) + [index, shards - 1 - index]
    return torch.nn.functional.pad(cut, padding).flatten(dim, dim + 2)
