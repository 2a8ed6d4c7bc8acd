"""Sharding rules of elementwise operators: operands broadcast against the result, from the right."""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, DimFactor, Loops
from autopar.shardings.rules.declaration import Rule

__all__ = ["POINTWISE", "RULES", "broadcast_dims"]


def broadcast_dims(shape: tuple[int, ...], result: tuple[int, ...]) -> tuple[Dim, ...]:
    """Factors of an operand that broadcasts to ``result``."""
    offset = len(result) - len(shape)
    return tuple(
        () if size == 1 and result[offset + dim] > 1 else (DimFactor(f"d{offset + dim}"),)
        for dim, size in enumerate(shape)
    )


def _pointwise(linear: str) -> Rule:
    """``linear`` says where partial sums pass: a ``sum`` of two, ``each`` alone, ``first`` or ``none``."""

    def loops(call: Call) -> Loops:
        result = call.result.shape
        operands = tuple(broadcast_dims(value.shape, result) for value in call.operands)
        return Loops(
            operands=operands,
            results=tuple(broadcast_dims(result, result) for _ in call.results),
            linear=_linear_sets(linear, len(operands), call),
            is_heavy=False,
        )

    return loops


def _linear_sets(linear: str, count: int, call: Call) -> tuple[frozenset[int], ...]:
    if not count or not call.result.dtype.startswith(("float", "bfloat")):
        return ()
    match linear:
        case "sum":
            # x + 1 adds the 1 on every rank: only a sum of tensors passes partial sums on.
            return (frozenset(range(count)),) if count == 2 else ()
        case "each":
            same = len({value.name for value in call.operands}) == count
            return tuple(frozenset([operand]) for operand in range(count)) if same else ()
        case "first":
            return (frozenset([0]),) if count == 1 or call.operands[0] != call.operands[1] else ()
    return ()


_SUMS = ("add.Tensor", "sub.Tensor")
_PRODUCTS = ("mul.Tensor", "mul.Scalar")
_QUOTIENTS = ("div.Tensor", "div.Scalar")
_LINEAR = ("neg.default", "to.dtype", "to.device", "to.dtype_layout", "clone.default", "contiguous.default")
_ALIASES = (
    "alias.default",
    "detach.default",
    "_to_copy.default",
    "lift_fresh_copy.default",
    "positive.default",
)
_NONLINEAR = [
    "relu.default",
    "gelu.default",
    "silu.default",
    "tanh.default",
    "sigmoid.default",
    "exp.default",
    "log.default",
    "log1p.default",
    "sqrt.default",
    "rsqrt.default",
    "reciprocal.default",
    "sin.default",
    "cos.default",
    "abs.default",
    "erf.default",
    "sign.default",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "square.default",
    "softplus.default",
    "leaky_relu.default",
    "elu.default",
    "hardtanh.default",
    "hardswish.default",
    "hardsigmoid.default",
    "mish.default",
    "log_sigmoid.default",
    "relu6.default",
    "clamp.default",
    "clamp_min.default",
    "clamp_max.default",
    "maximum.default",
    "minimum.default",
    "floor.default",
    "ceil.default",
    "round.default",
    "remainder.Scalar",
    "remainder.Tensor",
    "fmod.Scalar",
    "fmod.Tensor",
    "floor_divide.default",
    "add.Scalar",
    "sub.Scalar",
    "rsub.Scalar",
    "rsub.Tensor",
    "eq.Tensor",
    "eq.Scalar",
    "ne.Tensor",
    "ne.Scalar",
    "lt.Tensor",
    "lt.Scalar",
    "le.Tensor",
    "le.Scalar",
    "gt.Tensor",
    "gt.Scalar",
    "ge.Tensor",
    "ge.Scalar",
    "logical_and.default",
    "logical_or.default",
    "logical_not.default",
    "logical_xor.default",
    "bitwise_and.Tensor",
    "bitwise_or.Tensor",
    "bitwise_not.default",
    "__and__.Tensor",
    "__or__.Tensor",
    "isnan.default",
    "isinf.default",
    "where.self",
    "where.ScalarOther",
    "where.ScalarSelf",
    "masked_fill.Scalar",
    "masked_fill.Tensor",
    "zeros_like.default",
    "ones_like.default",
    "full_like.default",
    "dropout.default",
    "lerp.Scalar",
    "lerp.Tensor",
    "addcmul.default",
    "addcdiv.default",
    "atan2.default",
    "div.Tensor_mode",
    "div.Scalar_mode",
]

POINTWISE: dict[str, str] = {
    **dict.fromkeys(_SUMS, "sum"),
    **dict.fromkeys(_PRODUCTS, "each"),
    **dict.fromkeys((*_QUOTIENTS, *_LINEAR, *_ALIASES), "first"),
    **dict.fromkeys(_NONLINEAR, "none"),
}
"""Every elementwise operator, and where it passes partial sums."""

RULES: dict[str, Rule] = {f"aten.{name}": _pointwise(linear) for name, linear in POINTWISE.items()}
