"""One call in microbatches: forward and backward of one slice of the batch after the other.

Only one microbatch's activations live at a time. Gradients are kept aside until the user's ``backward()``: see
``autopar.runtime.gradients``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autopar.runtime.axis import Axis
from autopar.runtime.batch import Input
from autopar.runtime.data import data_parts, end_step_at, reduce_at, rest
from autopar.runtime.gradients import KeptGradients, LossScale, hand_over, refuse_backward, set_aside
from autopar.runtime.joins import as_outputs, joined, loss_position

__all__ = ["Counts", "Microbatch", "cut_inputs", "run_microbatches", "start_backward", "with_backward"]

Microbatch = tuple[Tensor, ...]
"""What one microbatch's forward reads."""
Counts = Callable[..., tuple[Tensor, ...]]
"""``counts(axes, *inputs)`` of one microbatch: numbers whose sums over microbatches every forward reads too."""


@torch.no_grad()
def cut_inputs(
    inputs: Sequence[Input],
    local: Sequence[Tensor],
    microbatches: int,
    counts: Counts | None,
    axes: Mapping[str, Axis],
) -> list[Microbatch]:
    """What each microbatch's forward reads: its pieces of this rank's slices, then the sums of the counts."""
    pieces = [each.microbatches(tensor, microbatches) for each, tensor in zip(inputs, local, strict=True)]
    slices: list[Microbatch] = [tuple(each[number] for each in pieces) for number in range(microbatches)]
    if counts is None:
        return slices
    counted = zip(*(counts(axes, *slice_) for slice_ in slices), strict=True)
    totals = [torch.stack(each).sum(0).to(torch.float32) for each in counted]
    return [(*slice_, *totals) for slice_ in slices]


def run_microbatches(
    module: nn.Module, slices: Sequence[Microbatch], joins: Sequence[str], scale: LossScale
) -> tuple[Tensor, ...]:
    """The outputs of the whole batch; with gradients enabled, backward of each microbatch has run already.

    The loss is the first scalar output that is summed. ``backward()`` from any other output raises ModelError.
    """
    if not torch.is_grad_enabled():
        outputs = joined([as_outputs(nn.Module.__call__(module, *slice_)) for slice_ in slices], joins)
        rest(module)
        return outputs
    parameters = [parameter for parameter in nn.Module.parameters(module) if parameter.requires_grad]
    if "sum" not in joins:
        with torch.no_grad():
            outputs = run_microbatches(module, slices, joins, scale)
        return with_backward(outputs, [bool(parameters)] * len(outputs), None, KeptGradients(), scale)
    results, place, have_gradients = [], None, [False] * len(joins)
    parts = data_parts(module)
    with set_aside(parameters) as kept:
        for number, slice_ in enumerate(slices):
            reduce_at(parts, is_last=number == len(slices) - 1)
            end_step_at(parts, is_last=number == len(slices) - 1)
            outputs = as_outputs(nn.Module.__call__(module, *slice_))
            place, have_gradients = loss_position(outputs, joins), [o.requires_grad for o in outputs]
            if place is not None:
                kept.start = scale.start(outputs[place])
                start_backward([outputs[place]], [kept.start])
            results.append(tuple(output.detach() for output in outputs))
            del outputs  # the graph of one microbatch goes before the next one's is made
    return with_backward(joined(results, joins), have_gradients, place, kept, scale)


def start_backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Backward of one microbatch, as the user would run it: outside of autocast."""
    if outputs:
        with torch.autocast(outputs[0].device.type, enabled=False):
            torch.autograd.backward(outputs, gradients)


def with_backward(
    outputs: Sequence[Tensor],
    have_gradients: Sequence[bool],
    place: int | None,
    kept: KeptGradients,
    scale: LossScale,
) -> tuple[Tensor, ...]:
    """The outputs for the user: the loss, at ``place``, hands over what was kept; others refuse a backward."""
    return tuple(
        hand_over(output, kept, scale)
        if position == place
        else refuse_backward(output, position)
        if has_gradient and output.is_floating_point()
        else output
        for position, (output, has_gradient) in enumerate(zip(outputs, have_gradients, strict=True))
    )
