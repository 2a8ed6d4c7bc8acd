"""An operator call's arguments as plain data: the schema's order, and ``Symbol`` for torch objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autopar.capture.graph import Argument, Ref, Symbol
from autopar.capture.trace import Call, Slot
from autopar.errors import CaptureError
from autopar.torch_private import operator_arguments

__all__ = ["plain_arguments"]

TRAINING_FLAGS = ("train", "training", "use_input_stats")
"""How operators' schemas call the flag that ``module.training`` sets."""


def plain_arguments(
    call: Call, name_of: Callable[[int], str]
) -> tuple[tuple[Argument, ...], tuple[tuple[str, Argument], ...]]:
    """Returns the positional and the keyword arguments of a call.

    Keywords that the schema allows by position are moved there; ``pin_memory`` and ``layout`` are left out,
    as every tensor is strided, and devices read ``Symbol("device", "default")``: the plan places tensors.
    """
    schema = operator_arguments(call.target)
    positional = [each for each in schema if not each[1]]
    values = [*call.arguments]
    given = dict(call.keywords)
    for name, _, default, _ in positional[len(values) :]:
        if not any(later in given for later, _, _, _ in positional[len(values) :]):
            break
        values.append(given.pop(name, default))
    arguments = tuple(
        _plain(value, name, name_of) for value, (name, _, _, _) in zip(values, positional, strict=False)
    )
    keywords = tuple(
        (name, _plain(value, name, name_of))
        for name, value in given.items()
        if name not in ("pin_memory", "layout") and value is not None
    )
    return arguments, keywords


def _plain(value: Any, name: str, name_of: Callable[[int], str]) -> Argument:
    if isinstance(value, Slot):
        return Ref(name_of(value.index))
    if isinstance(value, list | tuple):
        return tuple(_plain(each, name, name_of) for each in value)
    if value is True and name in TRAINING_FLAGS:
        return Symbol("training", "True")
    if isinstance(value, torch.dtype):
        return Symbol("dtype", str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return Symbol("device", "default")
    if isinstance(value, torch.layout):
        return Symbol("layout", str(value).removeprefix("torch."))
    if isinstance(value, torch.memory_format):
        return Symbol("memory_format", str(value).removeprefix("torch."))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CaptureError(
        f"the argument {name!r} is a {type(value).__name__} ({value}), which a graph cannot hold"
    )
