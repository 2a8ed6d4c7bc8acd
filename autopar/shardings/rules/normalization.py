"""Sharding rules of normalizations and softmax: every dim but the normalized ones."""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import DimFactor, Loops
from autopar.shardings.rules.declaration import Rule

__all__ = ["RULES"]


def _norm(call: Call) -> Loops:
    """``layer_norm`` and ``rms_norm``: input (… normalized), weight and bias (normalized)."""
    normalized = call.argument(1, "normalized_shape", ())
    shape = call.result.shape
    whole = len(normalized) if isinstance(normalized, tuple) else 1
    free = tuple((DimFactor(f"d{dim}"),) for dim in range(len(shape) - whole))
    kept = (*free, *((),) * whole)
    parameters = tuple(((),) * len(value.shape) for value in call.operands[1:])
    return Loops(operands=(kept, *parameters), results=(kept,))


def _softmax(call: Call) -> Loops:
    shape = call.result.shape
    along = call.dim(1, "dim", len(shape))
    dims = tuple(() if dim == along else (DimFactor(f"d{dim}"),) for dim in range(len(shape)))
    return Loops(operands=(dims,), results=(dims,))


RULES: dict[str, Rule] = {
    "aten.layer_norm.default": _norm,
    "aten.rms_norm.default": _norm,
    "aten.softmax.int": _softmax,
    "aten._softmax.default": _softmax,
    "aten.log_softmax.int": _softmax,
    "aten._log_softmax.default": _softmax,
    "aten.cumsum.default": _softmax,
}
