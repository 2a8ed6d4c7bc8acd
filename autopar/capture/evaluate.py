"""Values of tensors that depend on no input except through its shape, without holding what repeats.

A tensor is kept with size 1 along every dim in which it is constant, and large elementwise results are
kept as calls and computed a few rows at a time, so that a ``[batch, 1, s, s]`` mask costs no ``batch``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopar.capture.gradients import SHAPE_ONLY
from autopar.capture.trace import Call, Slot, Trace, map_slots

__all__ = ["Elementwise", "Evaluator", "rows_of"]

HELD_ELEMENTS = 2**26
"""Larger tensors are never made whole: 64 MiB as booleans."""
ELEMENTWISE = {"__and__", "__or__", "__xor__", "expand", "expand_as", "to"}
"""Elementwise operators (or broadcasts) that torch does not tag as such."""


@dataclass(frozen=True, slots=True)
class Elementwise:
    """An elementwise call on values, not yet computed."""

    call: Call
    operands: dict[Slot, Any]
    shape: tuple[int, ...]


def rows_of(value: Tensor | Elementwise, rows: Tensor) -> Tensor:
    """Returns some rows (of the second last dim) of a value; a dim in which it is constant has size 1."""
    if isinstance(value, Tensor):
        return value if value.dim() < 2 or value.shape[-2] == 1 else value.index_select(-2, rows)
    operands = {slot: rows_of(each, rows) for slot, each in value.operands.items()}
    return _apply(value.call, operands)


class Evaluator:
    """Evaluates the constant tensors of a trace; each at most once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.makers = {slot: call for call in trace.calls for slot in call.results}
        self.values: dict[int, Tensor | Elementwise | None] = {}

    def value(self, slot: int) -> Tensor | Elementwise | None:
        """Returns a value, with size 1 where it repeats; None where data enters or it is too large."""
        pending = [slot]
        while pending:
            current = pending[-1]
            missing = (
                [] if current in self.values else [s for s in self._needs(current) if s not in self.values]
            )
            if missing:
                pending.extend(missing)
                continue
            if current not in self.values:
                self.values[current] = self._evaluate(current)
            pending.pop()
        return self.values[slot]

    def _needs(self, slot: int) -> tuple[int, ...]:
        call = self.makers.get(slot)
        return () if call is None or call.name.startswith(SHAPE_ONLY) else call.reads

    def _evaluate(self, slot: int) -> Tensor | Elementwise | None:
        if slot in self.trace.constants:
            return _without_repeats(self.trace.constants[slot])
        call = self.makers.get(slot)
        if call is None or len(call.results) != 1 or torch.Tag.nondeterministic_seeded in call.target.tags:
            return None
        operands = {Slot(each): self.values.get(each) for each in self._needs(slot)}
        if any(value is None for value in operands.values()):
            return None
        shape = self.trace.tensors[slot].shape
        if _is_elementwise(call):
            return self._elementwise(call, operands, shape)
        if _only_leads(call, len(shape)) and isinstance(given := operands[call.arguments[0]], Elementwise):
            return Elementwise(given.call, given.operands, (1, *given.shape))
        if _elements(shape) > HELD_ELEMENTS or not all(
            isinstance(each, Tensor) for each in operands.values()
        ):
            return None
        for each in call.reads:
            tensor = self.trace.tensors[each]
            whole: Any = operands.get(Slot(each), torch.zeros((), dtype=tensor.dtype))
            operands[Slot(each)] = whole.expand(tensor.shape)
        return _without_repeats(_apply(call, operands))

    def _elementwise(
        self, call: Call, operands: dict[Slot, Any], shape: tuple[int, ...]
    ) -> Tensor | Elementwise:
        given = torch.broadcast_shapes(*(tuple(value.shape) for value in operands.values()))
        kept = (1,) * (len(shape) - len(given)) + tuple(given)
        if _elements(kept) <= HELD_ELEMENTS and all(isinstance(each, Tensor) for each in operands.values()):
            return _without_repeats(_apply(call, operands).reshape(kept))
        return Elementwise(call, operands, kept)


def _is_elementwise(call: Call) -> bool:
    return bool(call.reads) and (torch.Tag.pointwise in call.target.tags or call.name in ELEMENTWISE)


def _only_leads(call: Call, rank: int) -> bool:
    """Whether a call only puts a dim of size 1 before the last two."""
    return call.name == "unsqueeze" and call.arguments[1] % rank < rank - 2


def _apply(call: Call, operands: dict[Slot, Any]) -> Tensor:
    if call.name in ("expand", "expand_as"):
        return operands[call.arguments[0]]
    arguments = map_slots(call.arguments, operands.__getitem__)
    keywords = {
        name: value
        for name, value in map_slots(call.keywords, operands.__getitem__).items()
        if name not in ("device", "pin_memory")
    }
    return call.target(*(list(each) if isinstance(each, tuple) else each for each in arguments), **keywords)


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _without_repeats(tensor: Tensor) -> Tensor:
    """Shrinks to size 1 every dim along which all slices are equal."""
    for dim in range(tensor.dim()):
        first = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
        if tensor.shape[dim] > 1 and bool((tensor == first).all()):
            tensor = first
    return tensor
