"""Drops what computes nothing: identities, conversions to the dtype at hand, results that nobody uses.

No trace of strides and devices is left: they differ from kernel to kernel, and the plan decides them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from autopar.capture.trace import Call, Slot, Trace, TracedTensor
from autopar.torch_private import operator_arguments

__all__ = ["copy_held_outputs", "drop_identities", "drop_unused"]

aten = torch.ops.aten

COPIES = {"alias", "lift_fresh", "lift_fresh_copy", "clone", "contiguous"}
"""Operators whose result equals their first argument; strides are no part of a graph."""
RESHAPES = {
    "view",
    "reshape",
    "_unsafe_view",
    "expand",
    "flatten",
    "unflatten",
    "squeeze",
    "slice",
    "view_as",
}
"""Operators that return their first argument unchanged when the shape stays the same."""


def drop_identities(trace: Trace) -> None:
    """Removes calls that return their first argument, and writes the others in one form each."""
    same: dict[Slot, Slot] = {}
    kept: list[Call] = []
    for call in trace.calls:
        call = call.with_slots(lambda slot: same.get(slot, slot))
        call = _normal_form(call, trace)
        if _is_identity(call, trace):
            same[Slot(call.results[0])] = call.arguments[0]
        else:
            kept.append(call)
    trace.calls = kept
    trace.outputs = [same.get(Slot(output), Slot(output)).index for output in trace.outputs]


def _normal_form(call: Call, trace: Trace) -> Call:
    """``view`` as ``reshape``, which needs no strides, and every kind of ``to`` as a conversion of dtype."""
    if call.target in (aten.view.default, aten._unsafe_view.default):
        return replace(call, target=aten.reshape.default)
    if call.name in ("to", "_to_copy", "type_as"):
        dtype = trace.tensors[call.results[0]].dtype
        return replace(call, target=aten.to.dtype, arguments=(call.arguments[0], dtype), keywords={})
    return call


def _is_identity(call: Call, trace: Trace) -> bool:
    name = call.name
    if len(call.results) != 1 or not call.arguments or not isinstance(call.arguments[0], Slot):
        return False
    before, after = trace.tensors[call.arguments[0].index], trace.tensors[call.results[0]]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return False
    if name in COPIES or name in RESHAPES or name == "to":
        return True
    return _is_neutral(name, call.arguments, before)


def _is_neutral(name: str, arguments: tuple[Any, ...], before: TracedTensor) -> bool:
    """Dropout that drops nothing, and sums and products with their neutral number."""
    if name in ("dropout", "feature_dropout", "alpha_dropout"):
        return arguments[1] == 0 or not arguments[2]
    if (
        len(arguments) < 2
        or isinstance(arguments[1], Slot | bool)
        or not isinstance(arguments[1], int | float)
    ):
        return False
    if name in ("add", "sub"):
        return arguments[1] == 0 and not before.dtype.is_floating_point
    return name in ("mul", "div") and arguments[1] == 1


def drop_unused(trace: Trace) -> None:
    """Removes calls whose results reach no output; calls that write to a buffer stay."""
    used = set(trace.outputs)
    kept: list[Call] = []
    for call in reversed(trace.calls):
        if used.intersection(call.results) or _writes(call):
            used.update(call.reads)
            kept.append(call)
    trace.calls = kept[::-1]


def copy_held_outputs(trace: Trace) -> None:
    """Makes outputs that are parameters or constants results of a call, as segments hand on only results."""
    for place, output in enumerate(trace.outputs):
        if output in trace.parameters or output in trace.constants:
            slot = trace.add(trace.tensors[output])
            trace.calls.append(Call(aten.alias.default, (Slot(output),), {}, (slot.index,)))
            trace.outputs[place] = slot.index


def _writes(call: Call) -> bool:
    return any(is_written for _, _, _, is_written in operator_arguments(call.target))
