"""Through which tensors of a trace a gradient flows back, and where it is cut."""

from __future__ import annotations

from dataclasses import replace

import torch

from autopar.capture.trace import Call, Slot, Trace

__all__ = ["cut_gradients"]

aten = torch.ops.aten

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


def cut_gradients(trace: Trace, leaves: set[int]) -> set[int]:
    """Writes ``torch.no_grad()`` regions as ``detach``, drops other ``detach``es that change nothing.

    ``leaves`` are the inputs and parameters that require a gradient; returns all tensors that do.
    """
    return _Cutter(trace, leaves).run()


class _Cutter:
    def __init__(self, trace: Trace, leaves: set[int]) -> None:
        self.trace = trace
        self.flowing = set(leaves)
        self.same: dict[Slot, Slot] = {}
        self.detached: dict[int, Slot] = {}
        self.calls: list[Call] = []

    def run(self) -> set[int]:
        for call in self.trace.calls:
            self._process(call.with_slots(lambda slot: self.same.get(slot, slot)))
        self.trace.calls = self.calls
        self.trace.outputs = [self.same.get(Slot(out), Slot(out)).index for out in self.trace.outputs]
        return self.flowing

    def _process(self, call: Call) -> None:
        if call.name in ("detach", "detach_"):
            self.same[Slot(call.results[0])] = self._detach(call.arguments[0], call)
            return
        if not call.records_gradient:
            call = call.with_slots(lambda slot: self._detach(slot, call))
        self.calls.append(call)
        if not call.name.startswith(SHAPE_ONLY) and not self.flowing.isdisjoint(call.reads):
            self.flowing.update(slot for slot in call.results if _can_flow(self.trace.tensors[slot].dtype))

    def _detach(self, slot: Slot, at: Call) -> Slot:
        """Returns the tensor without its gradient: the tensor itself where it has none."""
        if slot.index not in self.flowing:
            return slot
        if slot.index not in self.detached:
            made = self.trace.add(self.trace.tensors[slot.index])
            detach = replace(
                at, target=aten.detach.default, arguments=(slot,), keywords={}, results=(made.index,)
            )
            self.calls.append(replace(detach, returns_list=False))
            self.detached[slot.index] = made
        return self.detached[slot.index]


def _can_flow(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
