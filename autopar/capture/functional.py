"""In-place operators become operators that return new tensors; whoever looks on reads the new ones.

Each tensor that shares memory with another is known as a view of it. A write makes a new value for the
tensor written to, and a way to make new values, when somebody reads them, for the tensors it is a view of
(``select_scatter`` and the like) and for the other views of those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from autopar.capture.trace import Call, Slot, Trace, TracedTensor, map_slots
from autopar.capture.views import write_through
from autopar.errors import CaptureError
from autopar.torch_private import operator_arguments

__all__ = ["make_functional"]

aten = torch.ops.aten

RENAMED = {"aten.normal_.default": aten.normal_functional.default, "aten.bernoulli_.float": aten.bernoulli.p}
"""In-place operators whose functional form has another name."""


def make_functional(trace: Trace) -> None:
    """Replaces in-place calls. Those on buffers (statistics of a norm) stay.

    Raises CaptureError, with the line, for a write to an input or a parameter, or one whose effect on another
    tensor cannot be expressed.
    """
    memory = _Memory(trace)
    for call in trace.calls:
        memory.process(call)
    trace.outputs = [memory.read(output).index for output in trace.outputs]
    trace.calls = memory.calls


@dataclass(slots=True)
class _Place:
    """Where a tensor's value lives: its owner's memory, seen through a view."""

    owner: int
    """The tensor that the memory was made for."""
    parent: int | None = None
    """The tensor that this one is a view of; None for an owner."""
    view: Call | None = None
    """The call that gives this tensor from its parent; None for one of several results."""
    version: int = 0
    """How many writes to the owner's memory ``current`` knows of."""
    current: Slot | None = None
    """The slot that holds the value now; None when the memory was written to through ``view`` in vain."""


class _Memory:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.calls: list[Call] = []
        self.places: dict[int, _Place] = {}
        self.versions: dict[int, int] = {}
        self.second_names: dict[int, int] = {}
        """What an in-place call returns is the tensor that it wrote to."""

    def process(self, call: Call) -> None:
        """Adds a call, or what stands for it."""
        call = call.with_slots(lambda slot: Slot(self._first_name(slot.index)))
        written = _written(call)
        if written is None:
            self.calls.append(self._up_to_date(call))
            self._record_views(call)
        elif self._place(written).owner in self.trace.buffers:
            self.calls.append(self._up_to_date(call))
        else:
            self._write(self._up_to_date(call), written)

    def read(self, slot: int, reader: Call | None = None) -> Slot:
        """Returns the slot that holds a tensor's value now, for a call that reads it."""
        slot = self._first_name(slot)
        place = self.places.get(slot)
        if place is None:
            return Slot(slot)
        version = self.versions.get(place.owner, 0)
        if place.version < version and place.parent is not None and place.view is not None:
            parent = self.read(place.parent, reader)
            again = replace(place.view, arguments=(parent, *place.view.arguments[1:]))
            place.current = self._add(again, self.trace.tensors[slot], reader or again)
            place.version = version
        if place.version < version or place.current is None:
            raise CaptureError(
                f"{reader.source if reader else 'the output'}: a tensor is read after a write to memory "
                "that it shares with another tensor. Work on a copy (clone()), or without in-place operators."
            )
        return place.current

    def _up_to_date(self, call: Call) -> Call:
        return call.with_slots(lambda slot: self.read(slot.index, call))

    def _first_name(self, slot: int) -> int:
        return self.second_names.get(slot, slot)

    def _place(self, slot: int) -> _Place:
        return self.places.setdefault(slot, _Place(owner=slot, current=Slot(slot)))

    def _record_views(self, call: Call) -> None:
        if call.aliases is None:
            return
        viewed = self._first_name(call.aliases)
        owner = self._place(viewed).owner
        for slot in call.results:
            view = None if call.returns_list else call
            self.places[slot] = _Place(owner, viewed, view, self.versions.get(owner, 0), Slot(slot))

    def _add(self, call: Call, tensor: TracedTensor, at: Call) -> Slot:
        """Adds a call with one result, as if the user had written it where ``at`` is."""
        slot = self.trace.add(tensor)
        placed = replace(call, modules=at.modules, source=at.source, records_gradient=at.records_gradient)
        self.calls.append(replace(placed, results=(slot.index,), aliases=None, returns_list=False))
        return slot

    def _write(self, call: Call, written: int) -> None:
        owner = self.places[written].owner
        self._refuse_held(call, owner)
        value: Slot | None = self._functional(call, written)
        version = self.versions[owner] = self.versions.get(owner, 0) + 1
        self.second_names.update((result, written) for result in call.results)
        slot: int | None = written
        while slot is not None:
            place = self.places[slot]
            place.version, place.current = version, value
            value = self._through(call, place, value)
            slot = place.parent

    def _through(self, call: Call, place: _Place, value: Slot | None) -> Slot | None:
        """The new value of what ``place`` is a view of; None where a write through it cannot be expressed."""
        if place.parent is None or place.view is None or value is None:
            return None
        before = self.places[place.parent].current
        tensor = self.trace.tensors[place.parent]
        made = write_through(place.view, before, tensor.shape, value) if before is not None else None
        return self._add(made, tensor, call) if isinstance(made, Call) else made

    def _refuse_held(self, call: Call, owner: int) -> None:
        if owner in self.trace.inputs or owner in self.trace.parameters:
            kind = "an input" if owner in self.trace.inputs else "a parameter"
            raise CaptureError(
                f"{call.source or call.target}: {call.name} writes to {kind} of the module. "
                f"Write to a copy (clone()) or use {call.name.rstrip('_')}."
            )

    def _functional(self, call: Call, written: int) -> Slot:
        """Adds the call that returns what an in-place call writes."""
        tensor = self.trace.tensors[written]
        if call.name == "copy_":
            return self._convert(call, call.arguments[1], tensor)
        functional = replace(call, target=_functional_target(call))
        return self._convert(call, self._add(functional, self._outcome(functional), call), tensor)

    def _convert(self, call: Call, value: Slot, tensor: TracedTensor) -> Slot:
        """Casts and expands a tensor to another's dtype and shape, as a write to that one does."""
        now = self.trace.tensors[value.index]
        if now.dtype != tensor.dtype:
            cast = replace(call, target=aten.to.dtype, arguments=(value, tensor.dtype), keywords={})
            now = replace(now, dtype=tensor.dtype)
            value = self._add(cast, now, call)
        if now.shape != tensor.shape:
            expand = replace(call, target=aten.expand.default, arguments=(value, tensor.shape), keywords={})
            value = self._add(expand, tensor, call)
        return value

    def _outcome(self, call: Call) -> TracedTensor:
        """Runs a call on meta tensors."""

        def stand_in(slot: Slot) -> Any:
            tensor = self.trace.tensors[slot.index]
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        arguments = [list(a) if isinstance(a, tuple) else a for a in map_slots(call.arguments, stand_in)]
        result = call.target(*arguments, **map_slots(call.keywords, stand_in))
        return TracedTensor(tuple(result.shape), result.dtype)


def _written(call: Call) -> int | None:
    """The tensor that a call writes to, None when it writes to none."""
    arguments = operator_arguments(call.target)
    places = [number for number, (_, _, _, is_written) in enumerate(arguments) if is_written]
    if not places:
        return None
    if len(places) > 1 or places[0] >= len(call.arguments) or not isinstance(call.arguments[places[0]], Slot):
        raise CaptureError(
            f"{call.source or call.target}: {call.target} writes to several tensors, or to out=…"
        )
    return call.arguments[places[0]].index


def _functional_target(call: Call) -> Any:
    written = str(call.target)
    if written in RENAMED:
        return RENAMED[written]
    _, name, overload = written.split(".")
    target = getattr(getattr(aten, name.removesuffix("_"), None), overload, None)
    if not name.endswith("_") or target is None:
        raise CaptureError(
            f"{call.source or written}: {written} has no form that returns a new tensor. Write one."
        )
    return target
