"""Sharding rules of embeddings and losses: the places where the vocabulary may be sharded.

An embedding with a sharded vocabulary looks up what its shard holds and leaves a partial sum. Cross-entropy
with sharded classes reduces its maximum and its sums inside (factor *internal*); over sharded rows it leaves
a partial sum of the loss, already divided by the global count.
"""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import DimFactor, Loops
from autopar.shardings.rules.declaration import Rule, rule

__all__ = ["RULES"]

_NONE, _MEAN, _SUM = 0, 1, 2


def _embedding(call: Call) -> Loops | None:
    text = "v e, … -> … e"
    return rule(text, keywords=("weight", "indices"), unblocked=frozenset("v"))(call)


def _cross_entropy(call: Call) -> Loops | None:
    """Logits (n v), or (n v …) with dims after the classes, which stay unsharded then."""
    logits, target = call.operands[0].shape, call.operands[1].shape
    if call.operands[1].dtype != "int64":
        return None
    has_rows, extra = len(logits) >= 2, logits[2:]
    rows = ((DimFactor("n"),),) if has_rows else ()
    more = tuple((DimFactor(f"e{position}"),) for position in range(len(extra)))
    classes = (DimFactor("v"),)
    has_smoothing = bool(call.argument(5, "label_smoothing", 0.0))
    is_whole = bool(extra) or has_smoothing or len(call.operands) > 2
    reduction = call.argument(3, "reduction", _MEAN)
    row_dims = (*rows, *more)
    weights = tuple((classes,) for _ in call.operands[2:])
    return Loops(
        operands=((*rows, classes, *more), row_dims[: len(target)], *weights),
        results=(row_dims if reduction == _NONE else (),),
        whole=frozenset("v") if is_whole else frozenset(),
        internal=frozenset() if is_whole else frozenset("v"),
        unblocked=frozenset("v"),
    )


def _elementwise_loss(call: Call) -> Loops | None:
    """``mse_loss`` and its kin: operands of one shape; a mean over sharded elements is a sum of means."""
    shape = call.operands[0].shape
    if any(value.shape != shape for value in call.operands):
        return None
    dims = tuple((DimFactor(f"d{dim}"),) for dim in range(len(shape)))
    reduction = call.argument(2, "reduction", _MEAN)
    return Loops(
        operands=tuple(dims for _ in call.operands),
        results=(dims if reduction == _NONE else (),),
        is_mean=reduction == _MEAN,
        is_heavy=False,
    )


RULES: dict[str, Rule] = {
    "aten.embedding.default": _embedding,
    "aten.cross_entropy_loss.default": _cross_entropy,
    "aten.mse_loss.default": _elementwise_loss,
    "aten.l1_loss.default": _elementwise_loss,
    "aten.smooth_l1_loss.default": _elementwise_loss,
}
