"""Random numbers that agree where tensors are replicated and differ where they are sharded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from autopar.runtime.axis import Axis, nested_index

__all__ = ["seed_ranks"]


def seed_ranks(seed: int, axes: Mapping[str, Axis], sharded_axes: Iterable[str]) -> None:
    """Seed torch's default generators of this rank.

    ``sharded_axes`` are the axes along which the result of *every* random operator is sharded: their ranks
    draw different numbers, as different parts of one mask. Along any other axis some result is replicated,
    so all ranks must draw the same; where another result is sharded along it, its shards get equal masks.
    Ranks pass the same ``seed``.
    """
    wanted = set(sharded_axes)
    shard = nested_index(axis for name, axis in axes.items() if name in wanted)
    torch.manual_seed(seed + 1_000_003 * shard)  # far apart: seeds of successive runs do not meet
