"""Sharding rule of scaled dot-product attention: by batch, by head, by query position.

Keys and values stay whole along their own sequence: a shard of them would need a running softmax. Query
positions may be sharded; the runtime gives the causal mask its shard's offset, so that a shard is one run.
With grouped heads, keys and values have fewer heads than queries, and a shard of heads takes the same share
of both.
"""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.rules.declaration import Rule, rule

__all__ = ["RULES"]

_KEYWORDS = ("query", "key", "value", "attn_mask")


def _attention(call: Call) -> Loops | None:
    rank = len(call.operands[0].shape)
    heads = {4: "… h ", 3: "… "}.get(rank, "")
    text = f"{heads}s [d], {heads}[t] [d], {heads}[t] [e], {heads}s [t] -> {heads}s [e]"
    is_causal = bool(call.argument(5, "is_causal", False))
    unblocked = frozenset("s") if is_causal else frozenset()
    return rule(_with_mask(text, call), keywords=_KEYWORDS, unblocked=unblocked)(call)


def _with_mask(text: str, call: Call) -> str:
    """A mask may have fewer leading dims than the queries; it broadcasts from the right."""
    if len(call.operands) < 4:
        return text
    left, _, right = text.partition("->")
    queries, keys, values, mask = left.split(",")
    names = mask.split()
    dims = len(call.operands[3].shape)
    if "…" in names and dims < len(call.operands[0].shape):
        names = names[len(names) - dims :]
    return f"{queries},{keys},{values}, {' '.join(names)} ->{right}"


RULES: dict[str, Rule] = {"aten.scaled_dot_product_attention.default": _attention}
