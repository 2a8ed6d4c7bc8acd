"""Cross-entropy of sharded tokens, and of logits sharded over the vocabulary.

A mean over tokens is a sum and a count. Where ``batch_axes`` shard the tokens, each rank returns its share:
the sum over its own tokens divided by the count over all of them, so the shares add up to the mean however
unevenly the ignored tokens are spread. Where ``vocabulary_axes`` shard the logits, the maximum and the sums
of softmax are reduced inside, and the gradient, softmax − onehot, is local; nothing of the size of the
logits is kept but the logits themselves. (Shoeybi et al., Megatron-LM, 2019, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.runtime.axis import Axis, nested_index, nested_size
from autopar.torch_private import all_reduce_now

__all__ = ["count_targets", "cross_entropy"]


def count_targets(target: Tensor, *, axes: Sequence[Axis] = (), ignore_index: int = -100) -> Tensor:
    """How many targets are not ignored, on all ranks of the ``axes`` that shard them: what a mean divides by.

    ``target`` (…): class numbers, this rank's. Result: a whole number, scalar, the same on every rank along
    ``axes``; counts of microbatches add up. Raises ValueError for targets that are class probabilities.
    """
    if target.is_floating_point():
        raise ValueError("targets that are class probabilities are not counted one by one")
    return _all_reduce((target != ignore_index).sum(), "sum", axes)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    batch_axes: Sequence[Axis] = (),
    vocabulary_axes: Sequence[Axis] = (),
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy as ``torch.nn.functional.cross_entropy``, of local logits and targets.

    ``logits`` (classes,), (tokens, classes) or (tokens, classes, …), where ``batch_axes`` shard any dims but
    the classes and ``vocabulary_axes`` shard the classes, outermost first; ``weight`` is sharded as the
    classes are. ``target`` holds class numbers of the whole vocabulary, shape of the logits without the
    classes. The result is Partial over ``batch_axes`` for ``mean`` and ``sum`` (local for ``none``) and the
    full value on every rank along ``vocabulary_axes``. As in torch, the mean of no tokens is nan.

    Raises ValueError for targets that are class probabilities while the vocabulary is sharded.
    """
    if target.is_floating_point() and vocabulary_axes:
        raise ValueError(
            "cross_entropy with class probabilities as targets cannot shard the classes: shard tokens instead"
        )
    if not vocabulary_axes and not batch_axes:
        return F.cross_entropy(logits, target, weight, None, ignore_index, None, reduction, label_smoothing)
    if vocabulary_axes:
        losses = _sharded_losses(logits, target, vocabulary_axes, weight, ignore_index, label_smoothing)
        dtype = torch.float32 if torch.is_autocast_enabled(logits.device.type) else logits.dtype
    else:
        losses = F.cross_entropy(
            logits,
            target,
            weight,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        dtype = losses.dtype
    if reduction == "none":
        return losses.to(dtype)
    total = losses.sum(dtype=_wide(losses.dtype))  # a float16 sum would overflow
    if reduction == "sum":
        return total.to(dtype)
    count = _count(logits, target, vocabulary_axes, weight, ignore_index)
    return (total / _all_reduce(count, "sum", batch_axes)).to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to accumulate in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def _all_reduce(x: Tensor, operation: str, axes: Sequence[Axis]) -> Tensor:
    """Reduce over all ``axes``; without a gradient."""
    for axis in axes:
        if axis.size > 1:
            x = all_reduce_now(x.contiguous(), operation, axis.group_name)
    return x


def _count(
    logits: Tensor, target: Tensor, vocabulary_axes: Sequence[Axis], weight: Tensor | None, ignore_index: int
) -> Tensor:
    """What the mean over this rank's tokens divides by: their number, or their classes' weights."""
    dtype = _wide(logits.dtype)
    if target.is_floating_point():
        tokens = logits.numel() // logits.shape[_class_dim(logits)]
        return torch.full((), tokens, dtype=dtype, device=logits.device)
    is_counted = target != ignore_index
    if weight is None:
        return is_counted.sum().to(dtype)
    position, is_here = _local_class(target, weight.shape[0], vocabulary_axes)
    weights = weight.detach().to(dtype)[position].where(is_here & is_counted, 0)
    return _all_reduce(weights.sum(), "sum", vocabulary_axes)


def _class_dim(logits: Tensor) -> int:
    return 0 if logits.ndim == 1 else 1


def _local_class(target: Tensor, classes: int, axes: Sequence[Axis]) -> tuple[Tensor, Tensor]:
    """Each target's position among this rank's classes (0 where it has none), and whether it has one."""
    position = target - classes * nested_index(axes)
    is_here = (position >= 0) & (position < classes)
    return position.where(is_here, 0), is_here


def _sharded_losses(
    logits: Tensor,
    target: Tensor,
    axes: Sequence[Axis],
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Each token's loss, float32 or wider, shape of ``target``; the same on every rank along ``axes``."""
    rows = logits.movedim(_class_dim(logits), -1)
    if weight is None and label_smoothing:
        weight = logits.new_ones(rows.shape[-1])
    return _ShardedCrossEntropy.apply(rows, target, weight, tuple(axes), ignore_index, label_smoothing)


class _WholeVocabulary(NamedTuple):
    """What a token's loss needs to know of all classes, here and elsewhere; each of the target's shape."""

    log_sum: Tensor
    """log Σ_c exp z_c"""
    target: Tensor
    """z_t"""
    target_weight: Tensor
    """w_t"""
    weighted: Tensor
    """Σ_c w_c z_c"""
    weights: Tensor
    """W = Σ_c w_c"""


def _whole_vocabulary(
    z: Tensor, weight: Tensor | None, position: Tensor, is_here: Tensor, axes: Sequence[Axis]
) -> _WholeVocabulary:
    """Reduce over the ranks of the vocabulary, once by maximum and once by sum; w is 1 where not given."""
    maximum = _all_reduce(z.amax(-1), "max", axes)
    exponentials = (z - maximum.unsqueeze(-1)).exp().sum(-1)
    picked = z.gather(-1, position.unsqueeze(-1)).squeeze(-1).where(is_here, 0)
    sums = [exponentials, picked]
    if weight is not None:
        sums += [weight[position].where(is_here, 0), z @ weight, weight.sum().expand_as(picked)]
    exponentials, picked, *weighted = _all_reduce(torch.stack(sums), "sum", axes).unbind()
    none = torch.zeros_like(picked)
    return _WholeVocabulary(
        maximum + exponentials.log(), picked, *(weighted or (torch.ones_like(picked), none, none))
    )


class _ShardedCrossEntropy(torch.autograd.Function):
    """Losses of (…, classes of this rank) logits z. With p = softmax(z), class weights w and W = Σ_c w_c,

    loss   = (1 − ε)·w_t·(lse − z_t) + ε/C·(W·lse − Σ_c w_c z_c)
    ∂/∂z_j = ((1 − ε)·w_t + ε/C·W)·p_j − (1 − ε)·w_t·[j = t] − ε/C·w_j
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        axes: tuple[Axis, ...],
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        classes = logits.shape[-1]
        z = logits.to(_wide(logits.dtype))
        weight = None if weight is None else weight.to(z.dtype)
        position, is_here = _local_class(target, classes, axes)
        whole = _whole_vocabulary(z, weight, position, is_here, axes)
        is_counted = target != ignore_index
        share = label_smoothing / (classes * nested_size(axes))
        of_target = ((1 - label_smoothing) * whole.target_weight).where(is_counted, 0)
        of_smoothing = (share * whole.weights).where(is_counted, 0)
        losses = of_target * (whole.log_sum - whole.target)
        if label_smoothing:
            losses = losses + of_smoothing * whole.log_sum - share * whole.weighted
        ctx.save_for_backward(
            logits,
            whole.log_sum,
            position,
            of_target.where(is_here, 0),
            of_target + of_smoothing,
            is_counted,
            weight,
        )
        ctx.share = share
        return losses.where(is_counted, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        logits, log_sum, position, of_target, of_softmax, is_counted, weight = ctx.saved_tensors
        z = logits.to(log_sum.dtype)
        result = (z - log_sum.unsqueeze(-1)).exp_().mul_((gradient * of_softmax).unsqueeze(-1))
        result = _subtract_at(result, position, gradient * of_target)
        if ctx.share:
            result = result - (ctx.share * gradient * is_counted).unsqueeze(-1) * weight
        return result.to(logits.dtype), None, None, None, None, None


def _subtract_at(rows: Tensor, position: Tensor, amount: Tensor) -> Tensor:
    """Subtract ``amount`` from one element of each row: a comparison that fuses, or an update in place."""
    if torch.compiler.is_compiling():
        is_target = torch.arange(rows.shape[-1], device=rows.device) == position.unsqueeze(-1)
        return rows - amount.unsqueeze(-1) * is_target
    return rows.scatter_add_(-1, position.unsqueeze(-1), -amount.unsqueeze(-1))
