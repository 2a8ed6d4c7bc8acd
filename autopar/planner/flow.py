"""Who makes and who reads each storage of a segment; views share the storage of what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from autopar.capture.graph import SegmentType, Value
from autopar.planner.work import family_of
from autopar.shardings.calls import Call
from cost_models.dtypes import dtype_bytes

__all__ = ["PRODUCTS", "Flow", "Place"]

PRODUCTS = ("matmul", "attention", "embedding")
"""Families that Inductor leaves to kernels of their own."""


@dataclass(frozen=True, slots=True)
class Place:
    """One operand of one call."""

    call: int
    operand: int


@dataclass(frozen=True)
class Flow:
    """The operators of a segment in order, and the storages between them."""

    segment: SegmentType

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        return tuple(Call(operator, self.segment.values) for operator in self.segment.operators)

    @cached_property
    def families(self) -> tuple[str, ...]:
        return tuple(family_of(call) for call in self.calls)

    @cached_property
    def parameters(self) -> frozenset[str]:
        return frozenset(parameter.value for parameter in self.segment.parameters)

    @cached_property
    def storage(self) -> Mapping[str, str]:
        """Name of the storage of every value: the value that made it."""
        found = {name: name for name in self.segment.values}
        for place, call in enumerate(self.calls):
            if call.operands and (self.families[place] == "free" or self.is_epilogue(place)):
                for name in filter(None, call.operator.results):
                    found[name] = found[call.operands[0].name]
        return found

    def is_epilogue(self, place: int) -> bool:
        """True for a bias added to a product that nobody else reads: the product's own kernel does it."""
        call = self.calls[place]
        if call.operator.target != "aten.add.Tensor" or len(call.operands) != 2:
            return False
        product, bias = call.operands
        return (
            bias.name in self.parameters
            and len(bias.shape) == 1
            and self._makers.get(product.name) == "matmul"
            and self._mentions.get(product.name, 0) == 1
            and product.name not in self.segment.outputs
        )

    @cached_property
    def _makers(self) -> Mapping[str, str]:
        """Family of the operator that made each value."""
        return {
            name: self.families[place]
            for place, call in enumerate(self.calls)
            for name in call.operator.results
            if name is not None
        }

    @cached_property
    def _mentions(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for call in self.calls:
            for value in call.operands:
                found[value.name] = found.get(value.name, 0) + 1
        return found

    def is_work(self, place: int) -> bool:
        """True for a call that is neither a view nor part of another's kernel."""
        return not (
            self.calls[place].operands and (self.families[place] == "free" or self.is_epilogue(place))
        )

    def is_product(self, place: int) -> bool:
        return self.families[place] in PRODUCTS

    @cached_property
    def maker(self) -> Mapping[str, int]:
        """Place of the call that makes each storage; none for what the segment is given."""
        return {
            name: place
            for place, call in enumerate(self.calls)
            if self.is_work(place)
            for name in call.operator.results
            if name is not None
        }

    @cached_property
    def readers(self) -> Mapping[str, tuple[Place, ...]]:
        """Every mention of a storage by a call that works on it."""
        found: dict[str, list[Place]] = {}
        for place, call in enumerate(self.calls):
            if self.is_work(place):
                for operand, value in enumerate(call.operands):
                    found.setdefault(self.storage[value.name], []).append(Place(place, operand))
        return {name: tuple(places) for name, places in found.items()}

    @cached_property
    def outputs(self) -> frozenset[str]:
        return frozenset(self.storage[name] for name in self.segment.outputs)

    def value(self, storage: str) -> Value:
        return self.segment.values[storage]

    def bytes(self, storage: str) -> int:
        """Of the whole tensor, unsharded."""
        value = self.segment.values[storage]
        return prod(value.shape) * dtype_bytes(value.dtype)

    def operand(self, place: Place) -> Value:
        return self.calls[place.call].operands[place.operand]

    @cached_property
    def trained(self) -> frozenset[str]:
        """Storages, parameters excluded, through which a gradient flows."""
        return frozenset(
            root
            for name, root in self.storage.items()
            if self.segment.values[name].requires_grad and root not in self.parameters
        )
