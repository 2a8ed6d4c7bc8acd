"""What the backward of one operator reads of its forward: what autograd keeps when it runs alone."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.planner.work import family_of
from autopar.shardings.calls import Call

__all__ = ["Saved", "saved_by"]

_SAVES_RESULT = ("tanh", "sigmoid", "exp", "relu", "softmax", "log_softmax", "sqrt", "rsqrt", "reciprocal")
_SAVES_NOTHING = ("add", "sub", "rsub", "neg", "to", "clone", "contiguous", "sum", "mean", "alias", "cumsum")
_SAVES_SECOND = ("mul", "div")
_STATISTICS = {"rms_norm": 4.0, "layer_norm": 8.0}
"""Bytes a row: the inverse deviation, and the mean."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What one operator keeps."""

    operands: frozenset[int] = frozenset()
    """Positions of the operands it keeps, in the layout in which it reads them."""
    keeps_result: bool = False
    extra_bytes_per_element: float = 0.0
    """Kept beside them, per element of the first operand: a dropout mask, float32 log-probabilities."""
    bytes_per_row: float = 0.0
    """Kept beside them, per row of the first operand: statistics in float32."""


def saved_by(call: Call, *, is_compiled: bool = False) -> Saved:
    """What backward reads, by operator family; everything, for an operator that nobody described.

    A compiled loss reads its logits again and two statistics a row; an eager one keeps log-probabilities.
    """
    if not any(value is not None and value.requires_grad for value in call.results):
        return Saved()
    name = call.operator.target.split(".")[1]
    family = family_of(call)
    activations = frozenset(range(len(call.operands)))
    if family == "free" or name in _SAVES_NOTHING or family == "copy":
        return Saved()
    if family == "matmul":
        return Saved(_gradient_partners(call))
    if family == "attention":
        return Saved(activations, keeps_result=True, bytes_per_row=4.0)
    if family == "embedding":
        return Saved(frozenset([1]))
    if family == "cross_entropy":
        if is_compiled:
            return Saved(frozenset([0, 1]), bytes_per_row=8.0)
        return Saved(frozenset([1]), extra_bytes_per_element=4.0)
    if name == "dropout":
        return Saved(extra_bytes_per_element=1.0)
    if any(name == word for word in _SAVES_RESULT):
        return Saved(keeps_result=True)
    if name in _STATISTICS:
        return Saved(frozenset([0]), bytes_per_row=_STATISTICS[name])
    if name in _SAVES_SECOND:
        return Saved(_gradient_partners(call))
    if name in ("where", "masked_fill"):
        return Saved(frozenset([0 if name == "where" else 1]))
    return Saved(activations, keeps_result=name not in _POINTWISE_OF_INPUT)


_POINTWISE_OF_INPUT = (
    "gelu",
    "silu",
    "pow",
    "sin",
    "cos",
    "abs",
    "erf",
    "log",
    "softplus",
    "mish",
    "square",
    "mse_loss",
)


def _gradient_partners(call: Call) -> frozenset[int]:
    """A product keeps each factor that another factor's gradient needs."""
    operands = call.operands[:2]
    return frozenset(
        position
        for position in range(len(operands))
        if any(other.requires_grad for place, other in enumerate(operands) if place != position)
    )
