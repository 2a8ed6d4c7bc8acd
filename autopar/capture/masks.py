"""Attention masks that no data enters: dropped where they hide nothing, ``is_causal`` where they are causal.

Models build such masks from ``arange`` and comparisons. Given as a tensor, a mask forbids the fast kernels;
so each one is evaluated, whatever operators made it, and compared with what the kernel could be told.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from autopar.capture.evaluate import Evaluator, rows_of
from autopar.capture.trace import Call, Slot, Trace

__all__ = ["drop_constant_masks"]

COMPARED_ELEMENTS = 2**28
"""Larger masks (16,384 × 16,384) are compared with the causal mask on evenly spread rows only."""
COMPARED_AT_ONCE = 2**24
"""Elements of the rows compared at a time."""


class Mask(Enum):
    """What a constant mask hides."""

    NOTHING = "nothing"
    FUTURE = "future"
    OTHER = "other"


def drop_constant_masks(trace: Trace) -> tuple[str, ...]:
    """Takes constant masks out of attention calls; returns what it did, in words."""
    evaluator = Evaluator(trace)
    masks = dict.fromkeys(mask for call in trace.calls if (mask := _mask_of(call)) is not None)
    with torch.device("cpu"), torch.no_grad():
        found = {mask: _classify(trace, evaluator, mask) for mask in masks}
    trace.calls = [
        call if (mask := _mask_of(call)) is None else _without(call, found[mask]) for call in trace.calls
    ]
    return _notes(trace, found)


def _mask_of(call: Call) -> int | None:
    if call.name != "scaled_dot_product_attention":
        return None
    mask = call.arguments[3] if len(call.arguments) > 3 else call.keywords.get("attn_mask")
    return mask.index if isinstance(mask, Slot) else None


def _without(call: Call, kind: Mask) -> Call:
    """The call with no mask, or with ``is_causal``: (query, key, value, mask, dropout_p, is_causal)."""
    if kind is Mask.OTHER:
        return call
    keywords = dict(call.keywords)
    keywords.pop("attn_mask", None)
    given = call.arguments[4:]
    dropout_p = given[0] if given else keywords.pop("dropout_p", 0.0)
    is_causal = given[1] if len(given) > 1 else keywords.pop("is_causal", False)
    is_causal = is_causal or kind is Mask.FUTURE
    return replace(call, arguments=(*call.arguments[:3], None, dropout_p, is_causal), keywords=keywords)


def _classify(trace: Trace, evaluator: Evaluator, slot: int) -> Mask:
    value = evaluator.value(slot)
    shape = trace.tensors[slot].shape
    if value is None or len(shape) < 2 or any(size != 1 for size in tuple(value.shape)[:-2]):
        return Mask.OTHER
    queries, keys = shape[-2:]
    possible = {Mask.NOTHING, Mask.FUTURE}
    for rows in _row_blocks(queries, keys):
        allowed = _allowed(rows_of(value, rows))
        if allowed is None:
            return Mask.OTHER
        allowed = allowed.expand(*allowed.shape[:-2], len(rows), keys)
        if not bool(allowed.all()):
            possible.discard(Mask.NOTHING)
        if not torch.equal(allowed.reshape(-1, keys), torch.arange(keys) <= rows[:, None]):
            possible.discard(Mask.FUTURE)
        if not possible:
            return Mask.OTHER
    return Mask.NOTHING if Mask.NOTHING in possible else Mask.FUTURE


def _row_blocks(queries: int, keys: int) -> list[Tensor]:
    rows = torch.arange(queries)
    if queries * keys > COMPARED_ELEMENTS:
        rows = torch.linspace(0, queries - 1, COMPARED_AT_ONCE * 8 // keys).long().unique()
    return list(rows.split(max(1, COMPARED_AT_ONCE // keys)))


def _allowed(mask: Tensor) -> Tensor | None:
    """Where a boolean or an additive mask lets attention through; None where it only weighs."""
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return mask == 0 if bool(((mask == 0) | hidden).all()) else None


def _notes(trace: Trace, found: dict[int, Mask]) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    for slot, kind in found.items():
        shape = trace.tensors[slot].shape
        sampled = "" if shape[-2] * shape[-1] <= COMPARED_ELEMENTS else " (compared on evenly spread rows)"
        if kind is Mask.FUTURE:
            notes[f"a causal attention mask {list(shape)}{sampled} became is_causal=True"] = None
        elif kind is Mask.NOTHING:
            notes[f"an attention mask {list(shape)}{sampled} that hides nothing was dropped"] = None
    return tuple(notes)
