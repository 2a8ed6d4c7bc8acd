"""Embedding whose table is sharded by rows over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from autopar.runtime.axis import Axis, nested_index, nested_size

__all__ = ["embedding"]


def embedding(
    indices: Tensor,
    weight: Tensor,
    axes: Sequence[Axis],
    vocabulary: int,
    padding_idx: int | None = None,
) -> Tensor:
    """Look ``indices`` up in this rank's rows of the table; the result is Partial over ``axes``.

    ``indices`` (…) of the whole vocabulary; ``weight`` (vocabulary / ranks, width), where ``axes`` shard the
    rows, outermost first. Result (…, width): zeros where another rank holds the row, so the sum over the
    axes is the embedding. Row ``padding_idx`` gets no
    gradient (there is none when negative, as in ``aten.embedding``).

    Raises ValueError when ``weight`` is not one of the equal shards of ``vocabulary`` rows.
    """
    rows = weight.shape[0]
    if rows * nested_size(axes) != vocabulary:
        raise ValueError(
            f"{rows} rows on each of {nested_size(axes)} ranks are not a vocabulary of {vocabulary}"
        )
    padding_row = None if padding_idx is None or padding_idx < 0 else padding_idx - rows * nested_index(axes)
    if padding_row is not None and not 0 <= padding_row < rows:
        padding_row = None
    if not axes:
        return F.embedding(indices, weight, padding_row)
    row = indices - rows * nested_index(axes)
    is_elsewhere = (row < 0) | (row >= rows)
    found = F.embedding(row.masked_fill(is_elsewhere, 0), weight, padding_row)
    return found.masked_fill(is_elsewhere.unsqueeze(-1), 0)
