"""Collectives that operators perform themselves, where their strategy asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from autopar.planner.work import family_of
from autopar.shardings.calls import Call
from autopar.shardings.placement import Layout, local_shape

__all__ = ["internal_all_reduces"]

_FLOAT_BYTES, _COUNT_BYTES = 4, 8


def internal_all_reduces(
    call: Call, operands: Sequence[Layout], sizes: tuple[int, ...]
) -> list[tuple[int, int]]:
    """(axis, bytes) of every all-reduce inside the operator.

    Cross-entropy over sharded classes reduces a maximum, a sum and the target's logit per row; over sharded
    rows it counts the rows that are not ignored.
    """
    if family_of(call) != "cross_entropy":
        return []
    logits = operands[0]
    shape = call.operands[0].shape
    classes = 1 if len(shape) > 1 else 0
    rows = prod(local_shape(shape, logits, sizes)) // max(local_shape(shape, logits, sizes)[classes], 1)
    found: list[tuple[int, int]] = []
    for axis, placement in enumerate(logits):
        if placement.is_shard and placement.dim == classes:
            found += [(axis, rows * _FLOAT_BYTES)] * 3
        elif placement.is_shard:
            found.append((axis, _COUNT_BYTES))
    return found
