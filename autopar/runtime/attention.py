"""Scaled dot product attention whose queries are sharded along the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.runtime.axis import Axis, nested_index
from autopar.torch_private import can_flash, flash_causal_lower_right

__all__ = ["attention"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_axes: Sequence[Axis] = (),
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend from this rank's queries to all keys; the result is sharded as the queries are.

    ``q`` (…, queries, width), local: ``query_axes`` shard its second to last dim, outermost first.
    ``k`` (…, keys, width) and ``v`` (…, keys, value width) whole along the keys. ``attn_mask`` broadcasts
    against (…, queries, keys), local along the queries where it has them.

    ``is_causal`` is counted from the first query of the whole sequence, as torch counts it: query i sees the
    keys up to i. So a shard never looks at the keys beyond its last query; these are cut off, and what is
    left is the *lower-right* causal mask, for which the flash kernel needs no mask in memory. In float32, and
    on the CPU, a boolean mask of (queries, keys) is made.

    Without ``query_axes`` this is ``torch.nn.functional.scaled_dot_product_attention``.
    """
    options: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    if not is_causal or nested_index(query_axes) == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, **options)
    if attn_mask is not None:
        raise ValueError("attention takes attn_mask or is_causal, not both")
    queries, keys = q.shape[-2], k.shape[-2]
    end = queries * (nested_index(query_axes) + 1)
    if end > keys:  # more queries than keys: the last ones see them all
        return F.scaled_dot_product_attention(
            q, k, v, _causal_mask(end - queries, queries, keys, q.device), **options
        )
    seen_k, seen_v = k.narrow(-2, 0, end), v.narrow(-2, 0, end)
    if can_flash(q, seen_k, seen_v):
        return flash_causal_lower_right(q, seen_k, seen_v, dropout_p, scale)
    mask = _causal_mask(end - queries, queries, end, q.device)
    return F.scaled_dot_product_attention(q, seen_k, seen_v, mask, **options)


def _causal_mask(first_query: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys), true where query ``first_query + i`` may see key j."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(first_query)
