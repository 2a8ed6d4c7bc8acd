"""Conversions between layouts along one axis, each with its conjugate backward.

Along an axis a tensor is ``S(d)`` (sharded on dim d, gradient sharded alike), ``R|R`` (replicated, gradient
replicated), ``R|P`` (replicated, gradient partial: each rank holds a summand) or ``P|R`` (partial, gradient
replicated). The functions below are the edges between these states:

| function                             | from → to  | forward        | backward       |
| ------------------------------------ | ---------- | -------------- | -------------- |
| ``sum_gradient``                     | R|R → R|P  | nothing        | all-reduce     |
| ``all_reduce``                       | P|R → R|R  | all-reduce     | nothing        |
| ``all_reduce(backward="all_reduce")``| P|R → R|P  | all-reduce     | all-reduce     |
| ``all_gather``                       | S   → R|P  | all-gather     | reduce-scatter |
| ``all_gather(backward="slice")``     | S   → R|R  | all-gather     | slice          |
| ``reduce_scatter``                   | P|R → S    | reduce-scatter | all-gather     |
| ``shard``                            | R|R → S    | slice          | all-gather     |
| ``shard(backward="pad")``            | R|P → S    | slice          | pad with zeros |
| ``share_gradient``                   | R|P → R|R  | nothing        | divide         |
| ``all_to_all``                       | S(i)→ S(j) | all-to-all     | all-to-all     |

All of them trace through Dynamo and Inductor. On an axis of size 1 each returns its argument. Integer and
boolean tensors, which have no gradient, pass through those whose forward makes sense for them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from autopar.runtime.axis import Axis
from autopar.runtime.blocks import join_shards, local_shard, pad_shard, split_shards
from autopar.torch_private import all_gather_now, all_reduce_now, all_to_all_now, reduce_scatter_now

__all__ = [
    "all_gather",
    "all_reduce",
    "all_to_all",
    "reduce_scatter",
    "shard",
    "share_gradient",
    "sum_gradient",
]


def sum_gradient(x: Tensor, axis: Axis) -> Tensor:
    """R|R → R|P: the value itself; its gradient is summed over the axis (Megatron's f)."""
    return x if axis.size == 1 else _SumGradient.apply(x, axis)


def share_gradient(x: Tensor, axis: Axis) -> Tensor:
    """R|P → R|R: the value itself; of its gradient, which all ranks hold, each passes on an equal share."""
    return x if axis.size == 1 else _ShareGradient.apply(x, axis)


def all_reduce(x: Tensor, axis: Axis, *, backward: Literal["nothing", "all_reduce"] = "nothing") -> Tensor:
    """P|R → R|R: the sum over the axis; its gradient passes as it is (Megatron's g).

    With ``backward="all_reduce"`` P|R → R|P: the gradient arrives as summands and is summed too.
    """
    if axis.size == 1:
        return x
    total = _AllReduce.apply(x, axis)
    return sum_gradient(total, axis) if backward == "all_reduce" else total


def all_gather(
    x: Tensor,
    axis: Axis,
    dim: int,
    blocks: int = 1,
    *,
    backward: Literal["reduce_scatter", "slice"] = "reduce_scatter",
) -> Tensor:
    """S(dim) → R|P: every rank's shard, joined along ``dim``; the gradient is reduce-scattered.

    With ``backward="slice"`` S(dim) → R|R: the gradient is the same on every rank, and each takes its part.
    """
    if axis.size == 1:
        return x
    function = _AllGatherSlice if backward == "slice" else _AllGather
    return function.apply(x, axis, dim, blocks)


def reduce_scatter(x: Tensor, axis: Axis, dim: int, blocks: int = 1) -> Tensor:
    """P|R → S(dim): this rank's shard of the sum over the axis; the gradient is all-gathered.

    Raises ValueError when ``dim`` does not divide evenly.
    """
    return x if axis.size == 1 else _ReduceScatter.apply(x, axis, dim, blocks)


def shard(
    x: Tensor, axis: Axis, dim: int, blocks: int = 1, *, backward: Literal["all_gather", "pad"] = "all_gather"
) -> Tensor:
    """R|R → S(dim): this rank's shard of a value that all ranks hold; the gradient is all-gathered.

    With ``backward="pad"`` R|P → S(dim): each rank passes on its shard of the gradient amid zeros.

    Raises ValueError when ``dim`` does not divide evenly.
    """
    if axis.size == 1:
        return x
    function = _ShardPad if backward == "pad" else _Shard
    return function.apply(x, axis, dim, blocks)


def all_to_all(
    x: Tensor, axis: Axis, from_dim: int, to_dim: int, from_blocks: int = 1, to_blocks: int = 1
) -> Tensor:
    """S(from_dim) → S(to_dim): whole along ``from_dim``, sharded along ``to_dim``; the gradient goes back.

    Raises ValueError when the dims are the same or ``to_dim`` does not divide evenly.
    """
    if axis.size == 1:
        return x
    if from_dim % x.ndim == to_dim % x.ndim:
        raise ValueError(
            f"all_to_all needs two different dims of a {x.ndim}-dimensional tensor, got {from_dim}, {to_dim}"
        )
    return _AllToAll.apply(x, axis, from_dim, to_dim, from_blocks, to_blocks)


def _sum(x: Tensor, axis: Axis) -> Tensor:
    return all_reduce_now(x.contiguous(), "sum", axis.group_name)


def _gather(x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
    if x.dtype is torch.bool:
        return _gather(x.to(torch.uint8), axis, dim, blocks).to(torch.bool)  # gloo and NCCL carry bytes
    gathered = all_gather_now(x.contiguous(), axis.size, axis.group_name)
    return join_shards(gathered.view(axis.size, *x.shape), dim, blocks)


def _scatter_sum(x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
    stacked = split_shards(x, dim, axis.size, blocks)
    return reduce_scatter_now(stacked, axis.size, axis.group_name).squeeze(0)


def _slice(x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
    return local_shard(x, dim, axis.size, blocks, axis.index)


def _exchange(x: Tensor, axis: Axis, from_dim: int, to_dim: int, from_blocks: int, to_blocks: int) -> Tensor:
    if x.dtype is torch.bool:
        return _exchange(x.to(torch.uint8), axis, from_dim, to_dim, from_blocks, to_blocks).to(torch.bool)
    stacked = split_shards(x, to_dim, axis.size, to_blocks)
    received = all_to_all_now(stacked, axis.size, axis.group_name)
    return join_shards(received, from_dim, from_blocks)


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.axis), None


class _ShareGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.size = axis.size
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.size, None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return _sum(x, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
        ctx.where = (axis, dim, blocks)
        return _gather(x, axis, dim, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _scatter_sum(gradient, *ctx.where), None, None, None


class _AllGatherSlice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
        ctx.where = (axis, dim, blocks)
        return _gather(x, axis, dim, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _slice(gradient, *ctx.where), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
        ctx.where = (axis, dim, blocks)
        return _scatter_sum(x, axis, dim, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(gradient, *ctx.where), None, None, None


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
        ctx.where = (axis, dim, blocks)
        return _slice(x, axis, dim, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(gradient, *ctx.where), None, None, None


class _ShardPad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, blocks: int) -> Tensor:
        ctx.where = (axis, dim, blocks)
        return _slice(x, axis, dim, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        axis, dim, blocks = ctx.where
        return pad_shard(gradient, dim, axis.size, blocks, axis.index), None, None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axis: Axis, from_dim: int, to_dim: int, from_blocks: int, to_blocks: int
    ) -> Tensor:
        ctx.axis = axis
        ctx.back = (to_dim, from_dim, to_blocks, from_blocks)
        return _exchange(x, axis, from_dim, to_dim, from_blocks, to_blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return _exchange(gradient, ctx.axis, *ctx.back), None, None, None, None, None
