"""Gradients that were computed in the forward call, kept until the user's ``backward()`` asks for them.

Microbatches and pipeline schedules run backward inside the call. What they leave is taken off the parameters
(``set_aside``) and handed over, multiplied by the incoming gradient, through autograd itself: the loss that the
user gets is a function of the parameters whose backward returns the kept gradients (``hand_over``). So
``zero_grad()`` between forward and backward, scaled losses, accumulation over calls, hooks on parameters and
``torch.autograd.grad`` do what they do on one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from autopar.errors import ModelError
from autopar.torch_private import muted_hooks, scale_in_place

__all__ = ["KeptGradients", "LossScale", "hand_over", "refuse_backward", "set_aside"]


class LossScale:
    """The gradient from which backward inside a call starts: the last one that came into the loss.

    With it, float16 gradients are as far from underflow as ``GradScaler`` wants them; and as it is usually the
    next one too, rounding is what it is on one device.
    """

    def __init__(self, first: float = 1.0) -> None:
        self.value: Tensor | float = first
        self.guards_overflow = first != 1.0
        """Whether gradients are expected to overflow now and then, and ``GradScaler`` to skip the step."""

    def start(self, loss: Tensor) -> Tensor:
        """The gradient of a loss, of its dtype."""
        return torch.as_tensor(self.value, dtype=loss.dtype, device=loss.device)

    def see(self, incoming: Tensor) -> None:
        """Remember what came in, unless it says nothing: zero, infinite, not a number. Waits for no device."""
        is_usable = incoming.isfinite() & (incoming != 0)
        before = torch.as_tensor(self.value, dtype=incoming.dtype, device=incoming.device)
        self.value = incoming.detach().where(is_usable, before)


class KeptGradients:
    """Gradients by parameter, of ``start`` times the loss."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.gradients: list[Tensor] = []
        self.start: Tensor | float = 1.0

    def take(self, incoming: Tensor) -> list[Tensor]:
        """The gradients for an incoming gradient of the loss; once, as they are scaled where they lie."""
        if len(self.gradients) < len(self.parameters):
            raise ModelError(
                "the gradients of this loss were handed over by an earlier backward(): call the model again"
            )
        scale_in_place([_local(gradient) for gradient in self.gradients], incoming / self.start)
        taken, self.gradients = self.gradients, []
        return taken


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


@contextmanager
def set_aside(parameters: Sequence[nn.Parameter]) -> Iterator[KeptGradients]:
    """Collect what backward inside the block leaves on the parameters; what was there before is there after.

    Hooks of the parameters stay silent meanwhile: they see the gradients when these are handed over.
    """
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    kept = KeptGradients()
    try:
        with muted_hooks(parameters):
            yield kept
        found = [parameter for parameter in parameters if parameter.grad is not None]
        kept.parameters = found
        kept.gradients = [parameter.grad for parameter in found if parameter.grad is not None]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def hand_over(loss: Tensor, kept: KeptGradients, scale: LossScale) -> Tensor:
    """``loss``, a number, as a function of the parameters that has the kept gradients."""
    anchor = torch.zeros((), device=loss.device, requires_grad=True)
    return _HandOver.apply(loss.detach(), kept, scale, anchor, *kept.parameters)


class _HandOver(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, kept: KeptGradients, scale: LossScale, anchor: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.kept, ctx.scale = kept, scale
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        ctx.scale.see(incoming)
        return None, None, None, None, *ctx.kept.take(incoming)


def refuse_backward(output: Tensor, position: int) -> Tensor:
    """``output`` as a tensor that requires a gradient and raises ModelError when asked for it."""
    anchor = torch.zeros((), device=output.device, requires_grad=True)
    return _Refuse.apply(output.detach(), position, anchor)


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, position: int, anchor: Tensor) -> Tensor:
        ctx.position = position
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        raise ModelError(
            f"output {ctx.position} of the model has no backward: the plan runs backward of each microbatch inside "
            "the call, from the loss that the model returns. Let the model compute the whole loss, or pin the "
            "microbatch to the whole batch and the pipeline to one stage."
        )
