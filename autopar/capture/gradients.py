"""Through which tensors of a trace a gradient flows back."""

from __future__ import annotations

import torch

from autopar.capture.trace import Call, Trace

__all__ = ["find_gradients"]

SHAPE_ONLY = (
    "new_",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
)
"""Operators that read only the shape of their tensors."""


def find_gradients(trace: Trace, leaves: set[int]) -> set[int]:
    """Returns the tensors that require a gradient, given the inputs and parameters that do."""
    flowing = set(leaves)
    for call in trace.calls:
        if _is_differentiable(call) and not flowing.isdisjoint(call.reads):
            flowing.update(
                result for result in call.results if _can_have_gradient(trace.tensors[result].dtype)
            )
    return flowing


def _can_have_gradient(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _is_differentiable(call: Call) -> bool:
    return call.records_gradient and call.name != "detach" and not call.name.startswith(SHAPE_ONLY)
