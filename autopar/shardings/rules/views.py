"""Sharding rules of operators that only move data: reshapes, permutations, slices, joins.

A reshape cuts dims into the common factors of both shapes: ``[b, s·h] → [b, s, h]`` has factors b, s and h,
and ``s·h`` holds s, and h in s blocks. Equal slices along a dim are blocks of one factor, so that a fused
q, k, v projection may be sharded by heads: ``split([3·h]) → 3 × [h]`` is h in 3 blocks.
"""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Dim, DimFactor, Loops
from autopar.shardings.rules.declaration import Rule

__all__ = ["RULES", "reshape_dims"]

Shape = tuple[int, ...]


def _moves(
    operands: tuple[tuple[Dim, ...], ...], results: tuple[tuple[Dim, ...], ...], together: bool = False
) -> Loops:
    sets = (frozenset(range(len(operands))),) if together else (frozenset([0]),)
    return Loops(operands, results, linear=sets if operands else (), is_heavy=False)


def _plain(rank: int) -> list[Dim]:
    return [(DimFactor(f"d{dim}"),) for dim in range(rank)]


def reshape_dims(source: Shape, target: Shape) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """Factors of both sides of a reshape: common divisors from the left; none where the cuts do not align."""
    left: list[list[DimFactor]] = [[] for _ in source]
    right: list[list[DimFactor]] = [[] for _ in target]
    i = j = count = 0
    rest_i, rest_j = (source or (1,))[0], (target or (1,))[0]
    blocks_i = blocks_j = 1
    while i < len(source) and j < len(target):
        common = rest_i if rest_j % rest_i == 0 else rest_j if rest_i % rest_j == 0 else 0
        if common == 0:
            return _only_aligned_prefix(left, right, i, j)
        if common > 1:
            left[i].append(DimFactor(f"f{count}", blocks_i))
            right[j].append(DimFactor(f"f{count}", blocks_j))
            count += 1
        rest_i, rest_j = rest_i // common, rest_j // common
        blocks_i, blocks_j = blocks_i * common, blocks_j * common
        if rest_i == 1:
            i += 1
            rest_i, blocks_i = source[i] if i < len(source) else 1, 1
        if rest_j == 1:
            j += 1
            rest_j, blocks_j = target[j] if j < len(target) else 1, 1
    return tuple(map(tuple, left)), tuple(map(tuple, right))


def _only_aligned_prefix(
    left: list[list[DimFactor]], right: list[list[DimFactor]], i: int, j: int
) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """Dims before the misaligned ones keep their factors; the rest is whole."""
    whole_left = [tuple(dim) if position < i else () for position, dim in enumerate(left)]
    whole_right = [tuple(dim) if position < j else () for position, dim in enumerate(right)]
    kept = {factor.name for dim in whole_left for factor in dim} & {
        factor.name for dim in whole_right for factor in dim
    }

    def only_kept(dims: list[Dim]) -> tuple[Dim, ...]:
        return tuple(tuple(factor for factor in dim if factor.name in kept) for dim in dims)

    return only_kept(whole_left), only_kept(whole_right)


def _reshape(call: Call) -> Loops:
    operand, result = reshape_dims(call.operands[0].shape, call.result.shape)
    return _moves((operand,), (result,))


def _transpose(call: Call) -> Loops:
    rank = len(call.operands[0].shape)
    dims = _plain(rank)
    first, second = call.dim(1, "dim0", rank), call.dim(2, "dim1", rank)
    moved = list(dims)
    moved[first], moved[second] = dims[second], dims[first]
    return _moves((tuple(dims),), (tuple(moved),))


def _t(call: Call) -> Loops:
    dims = _plain(len(call.operands[0].shape))
    return _moves((tuple(dims),), (tuple(reversed(dims)),))


def _permute(call: Call) -> Loops:
    dims = _plain(len(call.operands[0].shape))
    order = call.argument(1, "dims", ())
    moved = (
        tuple(dims[axis % len(dims)] for axis in order if isinstance(axis, int))
        if isinstance(order, tuple)
        else ()
    )
    return _moves((tuple(dims),), (moved,))


def _expand(call: Call) -> Loops:
    source, target = call.operands[0].shape, call.result.shape
    offset = len(target) - len(source)
    operand = tuple(
        () if size != target[offset + dim] else (DimFactor(f"d{offset + dim}"),)
        for dim, size in enumerate(source)
    )
    return _moves((operand,), (tuple(_plain(len(target))),))


def _expand_as(call: Call) -> Loops:
    """The second operand gives its shape alone, and is sharded as the result."""
    expanded = _expand(call)
    return _moves((*expanded.operands, *expanded.results), expanded.results)


def _broadcast_tensors(call: Call) -> Loops:
    """Operands of dims that match from the right, each expanded to the shape of all."""
    target = call.result.shape
    result = tuple(_plain(len(target)))
    operands = tuple(
        tuple(
            ()
            if size != target[dim + len(target) - len(value.shape)]
            else result[dim + len(target) - len(value.shape)]
            for dim, size in enumerate(value.shape)
        )
        for value in call.operands
    )
    return _moves(operands, tuple(result for _ in call.results), together=True)


def _select(call: Call) -> Loops:
    rank = len(call.operands[0].shape)
    along = call.dim(1, "dim", rank)
    dims = _plain(rank)
    operand = (*dims[:along], (), *dims[along + 1 :])
    return _moves((operand,), ((*dims[:along], *dims[along + 1 :]),))


def _slice(call: Call) -> Loops:
    shape, result = call.operands[0].shape, call.result.shape
    along = call.dim(1, "dim", len(shape))
    start = call.argument(2, "start", 0) or 0
    step = call.argument(4, "step", 1) or 1
    first = start % shape[along] if isinstance(start, int) and shape[along] else 0
    is_block = (
        step == 1 and result[along] > 0 and shape[along] % result[along] == 0 and first % result[along] == 0
    )
    return _cut(shape, along, shape[along] // result[along] if is_block else 0, 1)


def _cut(shape: Shape, along: int, pieces: int, results: int) -> Loops:
    """``results`` equal pieces of ``pieces`` along a dim; 0 pieces where the cut is uneven."""
    dims = _plain(len(shape))
    operand, result = list(dims), list(dims)
    operand[along] = (DimFactor(f"d{along}", pieces),) if pieces else ()
    result[along] = dims[along] if pieces else ()
    return _moves((tuple(operand),), (tuple(result),) * results)


def _split(call: Call) -> Loops:
    shape = call.operands[0].shape
    along = call.dim(2, "dim", len(shape))
    sizes = {value.shape[along] for value in call.results if value is not None}
    even = len(sizes) == 1 and shape[along] == sizes.copy().pop() * len(call.results)
    return _cut(shape, along, len(call.results) if even else 0, len(call.results))


def _unbind(call: Call) -> Loops:
    rank = len(call.operands[0].shape)
    along = call.dim(1, "dim", rank)
    dims = _plain(rank)
    operand = (*dims[:along], (), *dims[along + 1 :])
    return _moves((operand,), ((*dims[:along], *dims[along + 1 :]),) * len(call.results))


def _cat(call: Call) -> Loops:
    shapes = [value.shape for value in call.operands]
    rank = len(call.result.shape)
    along = call.dim(1, "dim", rank)
    dims = _plain(rank)
    result = list(dims)
    even = len({shape[along] for shape in shapes}) == 1
    result[along] = (DimFactor(f"d{along}", len(shapes)),) if even else ()
    operand = list(dims)
    operand[along] = dims[along] if even else ()
    return _moves((tuple(operand),) * len(shapes), (tuple(result),), together=True)


def _stack(call: Call) -> Loops:
    rank = len(call.result.shape)
    along = call.dim(1, "dim", rank)
    dims = _plain(rank - 1)
    result = (*dims[:along], (), *dims[along:])
    return _moves((tuple(dims),) * len(call.operands), (result,), together=True)


def _pad(call: Call) -> Loops:
    shape, result = call.operands[0].shape, call.result.shape
    dims = tuple((DimFactor(f"d{dim}"),) if size == result[dim] else () for dim, size in enumerate(shape))
    return Loops((dims,), (dims,), is_heavy=False)


def _roll_or_flip(call: Call) -> Loops:
    moved = call.argument(2 if "roll" in call.operator.target else 1, "dims", ())
    rank = len(call.result.shape)
    touched = (
        {dim % rank for dim in moved if isinstance(dim, int)}
        if isinstance(moved, tuple)
        else set(range(rank))
    )
    if not touched:
        touched = set(range(rank))
    dims = tuple(() if dim in touched else (DimFactor(f"d{dim}"),) for dim in range(rank))
    return _moves((dims,), (dims,))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "aten.view.default",
            "aten.reshape.default",
            "aten._unsafe_view.default",
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.unsqueeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.squeeze.default",
        ),
        _reshape,
    ),
    "aten.transpose.int": _transpose,
    "aten.t.default": _t,
    "aten.permute.default": _permute,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand_as,
    "aten.broadcast_tensors.default": _broadcast_tensors,
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _slice,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.split.sizes": _split,
    "aten.chunk.default": _split,
    "aten.unbind.int": _unbind,
    "aten.cat.default": _cat,
    "aten.concat.default": _cat,
    "aten.stack.default": _stack,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.roll.default": _roll_or_flip,
    "aten.flip.default": _roll_or_flip,
}
