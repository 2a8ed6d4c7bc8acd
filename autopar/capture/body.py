"""What a block computes, traced alone: the calls that stand for each of its uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.calling import take_apart
from autopar.capture.likeness import unread
from autopar.capture.outline import FirstCall
from autopar.capture.trace import Trace, trace_program
from autopar.torch_private import fake_like, is_fake

__all__ = ["WRAPPED", "trace_body"]

WRAPPED = "block"
"""Under which name the traced module holds the block: its modules and parameters are ``block.…``."""


class UnlikeFirstCallError(Exception):
    """A block that is run again, alone, does something else."""


class _Alone(nn.Module):
    """A block's forward on nothing but tensors."""

    def __init__(self, block: nn.Module, first: FirstCall) -> None:
        super().__init__()
        self.add_module(WRAPPED, block)
        self.first = first

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        block: Any = self.get_submodule(WRAPPED)
        args, kwargs = self.first.given.with_tensors(tensors)
        with unread(block, self.first.alike.counters):
            parts = take_apart(type(block).forward(block, *args, **kwargs), tensors)
        if parts is None or parts[0] != self.first.returned:
            raise UnlikeFirstCallError
        return parts[1]


def trace_body(block: nn.Module, first: FirstCall) -> Trace:
    """Returns the trace of a block whose inputs are the distinct tensors it was given, in order.

    Raises whatever torch.export raises, and where the block reads a number that tells it from its like.
    """
    tensors = tuple(fake_like(each) for each in first.tensors)
    with torch.set_grad_enabled(first.records_gradient):
        program = torch.export.export(_Alone(block, first), tensors, strict=False)
    trace = trace_program(program)
    results = {slot for call in trace.calls for slot in call.results}
    if not results.issuperset(trace.outputs) or any(is_fake(held) for held in trace.constants.values()):
        raise UnlikeFirstCallError
    return trace
