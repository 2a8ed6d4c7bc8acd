"""Sharding rules of operators that make constants of a tensor's shape, write into one, repeat or index it."""

from __future__ import annotations

from autopar.capture.graph import Ref
from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, DimFactor, Loops
from autopar.shardings.rules.declaration import Rule
from autopar.shardings.rules.pointwise import broadcast_dims

__all__ = ["RULES"]


def _plain(rank: int, whole: int | None = None) -> tuple[Dim, ...]:
    """A factor per dim, but for one that must not be sharded."""
    return tuple(() if dim == whole else (DimFactor(f"d{dim}"),) for dim in range(rank))


def _new(call: Call) -> Loops:
    """A constant, whatever its operand holds: it is cut as the operand where sizes agree."""
    source, target = call.operands[0].shape, call.result.shape
    agrees = [
        len(source) == len(target) and size == wanted for size, wanted in zip(source, target, strict=False)
    ]
    dims = tuple(
        (DimFactor(f"d{dim}"),) if dim < len(agrees) and agrees[dim] else () for dim in range(len(target))
    )
    return Loops((dims if len(source) == len(target) else ((),) * len(source),), (dims,), is_heavy=False)


def _fill(call: Call) -> Loops:
    dims = _plain(len(call.result.shape))
    return Loops((dims, *[()] * (len(call.operands) - 1)), (dims,), is_heavy=False)


def _slice_scatter(call: Call) -> Loops:
    rank = len(call.result.shape)
    dims = _plain(rank, call.dim(2, "dim", rank))
    return Loops((dims, dims), (dims,), linear=(frozenset([0, 1]),), is_heavy=False)


def _select_scatter(call: Call) -> Loops:
    rank = len(call.result.shape)
    along = call.dim(2, "dim", rank)
    dims = _plain(rank, along)
    written = (*dims[:along], *dims[along + 1 :])
    return Loops((dims, written), (dims,), linear=(frozenset([0, 1]),), is_heavy=False)


def _repeat(call: Call) -> Loops:
    """A dim that is not repeated is itself; one of a single element is as many as wanted."""
    target = call.result.shape
    offset = len(target) - len(call.operands[0].shape)
    source = (1,) * offset + call.operands[0].shape
    result = tuple(
        (DimFactor(f"d{dim}"),) if before in (1, after) else ()
        for dim, (before, after) in enumerate(zip(source, target, strict=True))
    )
    operand = tuple(result[dim] if source[dim] == target[dim] else () for dim in range(offset, len(target)))
    return Loops((operand,), (result,), linear=(frozenset([0]),), is_heavy=False)


def _index(call: Call) -> Loops | None:
    """Neighbouring dims looked up by whole numbers: ``x[:, i, j]`` is ``b [v] [w] …, i, j -> b (i j) …``."""
    places = call.argument(1, "indices", ())
    if not isinstance(places, tuple):
        return None
    before = next((place for place, index in enumerate(places) if index is not None), len(places))
    if not all(isinstance(place, Ref) for place in places[before:]):
        return None
    source, indices = call.operands[0], call.operands[1:]
    if any(not index.dtype.startswith("int") for index in indices):
        return None
    result = _plain(len(call.result.shape))
    after = len(result) - (len(source.shape) - before - len(indices))
    operand = (*result[:before], *[()] * len(indices), *result[after:])
    looked_up = [
        tuple(_moved(dim, before) for dim in broadcast_dims(index.shape, call.result.shape[before:after]))
        for index in indices
    ]
    return Loops((operand, *looked_up), (result,), linear=(frozenset([0]),), is_heavy=False)


def _moved(dim: Dim, by: int) -> Dim:
    """The dim's factor as the result counts it, ``by`` dims further."""
    return tuple(DimFactor(f"d{int(factor.name.removeprefix('d')) + by}") for factor in dim)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.new_zeros.default", "aten.new_ones.default", "aten.new_full.default"), _new),
    "aten.fill.Scalar": _fill,
    "aten.fill.Tensor": _fill,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.select_scatter.default": _select_scatter,
    "aten.repeat.default": _repeat,
    "aten.index.Tensor": _index,
}
