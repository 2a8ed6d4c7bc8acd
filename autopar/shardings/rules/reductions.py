"""Sharding rules of sums and means: a sharded reduced dim leaves a partial sum (of means, for a mean)."""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, DimFactor, Loops
from autopar.shardings.rules.declaration import Rule

__all__ = ["RULES"]


def _reduced_dims(call: Call, position: int, rank: int) -> frozenset[int]:
    dims = call.argument(position, "dim", None)
    if dims is None or dims == ():
        return frozenset(range(rank))
    listed = dims if isinstance(dims, tuple) else (dims,)
    return frozenset(dim % rank for dim in listed if isinstance(dim, int))


def _reduction(*, is_mean: bool, is_sum: bool = True, takes_dims: bool = True, position: int = 1) -> Rule:
    """``position`` is where the call passes its dims."""

    def loops(call: Call) -> Loops:
        shape = call.operands[0].shape
        reduced = _reduced_dims(call, position, len(shape)) if takes_dims else frozenset(range(len(shape)))
        keeps_dims = len(call.result.shape) == len(shape) and bool(shape)
        operand: list[Dim] = []
        result: list[Dim] = []
        for dim in range(len(shape)):
            factor = (DimFactor(f"d{dim}"),)
            operand.append(factor if is_sum or dim not in reduced else ())
            if dim not in reduced:
                result.append(factor)
            elif keeps_dims:
                result.append(())
        return Loops(
            operands=(tuple(operand),),
            results=(tuple(result),),
            is_mean=is_mean,
            linear=(frozenset([0]),) if is_sum else (),
            is_heavy=False,
        )

    return loops


_SUM = _reduction(is_mean=False)
_MEAN = _reduction(is_mean=True)
_OTHER = _reduction(is_mean=False, is_sum=False)

RULES: dict[str, Rule] = {
    "aten.sum.default": _reduction(is_mean=False, takes_dims=False),
    "aten.sum.dim_IntList": _SUM,
    "aten.mean.default": _reduction(is_mean=True, takes_dims=False),
    "aten.mean.dim": _MEAN,
    "aten.amax.default": _OTHER,
    "aten.amin.default": _OTHER,
    "aten.logsumexp.default": _OTHER,
    "aten.any.dim": _OTHER,
    "aten.all.dim": _OTHER,
    "aten.argmax.default": _OTHER,
    "aten.linalg_vector_norm.default": _reduction(is_mean=False, is_sum=False, position=2),
}
