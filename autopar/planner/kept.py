"""Which storages of a segment live from its forward to its backward.

Run operator by operator, autograd keeps what each operator's backward reads. A compiled region keeps what
AOTAutograd's partitioner decides (torch._functorch.partitioners, read on torch 2.11): what a product's
backward reads is kept, since it would have to be written again; the rest is recomputed inside the kernels of
the backward from a minimum cut, by bytes, through operators that fuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from autopar.planner.execution import Execution
from autopar.planner.flow import Flow
from autopar.planner.minimum_cut import smallest_cut
from autopar.planner.saved import Saved, saved_by

__all__ = ["Kept"]


@dataclass(frozen=True)
class Kept:
    """What one segment keeps under an execution."""

    flow: Flow
    execution: Execution

    @cached_property
    def saved(self) -> tuple[Saved, ...]:
        """What the backward of each call reads."""
        is_compiled = self.execution.is_compiled
        return tuple(
            saved_by(call, is_compiled=is_compiled) if self.flow.is_work(place) else Saved()
            for place, call in enumerate(self.flow.calls)
        )

    def place_of(self, operator: str) -> int:
        """Place of the call of an operator."""
        return self._places[operator]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {call.operator.name: place for place, call in enumerate(self.flow.calls)}

    def needs(self, place: int) -> frozenset[str]:
        """Storages that the backward of one call reads, parameters excluded."""
        call, saved = self.flow.calls[place], self.saved[place]
        names = [call.operands[operand].name for operand in saved.operands]
        names += [name for name in call.operator.results if name is not None and saved.keeps_result]
        return frozenset(self.flow.storage[name] for name in names) - self.flow.parameters

    @cached_property
    def for_backward(self) -> frozenset[str]:
        """Storages at hand while the backward runs, recomputed ones included."""
        if not self.execution.is_compiled:
            return frozenset().union(*(self.needs(place) for place in range(len(self.flow.calls))))
        written = self._needed_by_products
        fused = frozenset().union(
            *(self.needs(place) for place in range(len(self.flow.calls)) if not self.flow.is_product(place))
        )
        return written | self._cut(written, fused)

    @cached_property
    def _needed_by_products(self) -> frozenset[str]:
        places = range(len(self.flow.calls))
        return frozenset().union(*(self.needs(place) for place in places if self.flow.is_product(place)))

    def _cut(self, known: frozenset[str], wanted: frozenset[str]) -> frozenset[str]:
        """The fewest bytes of storages from which, with those ``known``, all ``wanted`` can be recomputed."""
        edges = []
        sources = set(known)
        for storage in self.flow.storage.values():
            place = self.flow.maker.get(storage)
            if place is None or self.flow.is_product(place):
                sources.add(storage)
            else:
                operands = {self.flow.storage[value.name] for value in self.flow.calls[place].operands}
                edges += [(operand, storage) for operand in operands if storage not in known]
        free = known | self.flow.parameters
        weights = {
            storage: 0 if storage in free else self.flow.bytes(storage)
            for storage in self.flow.storage.values()
        }
        return smallest_cut(weights, edges, frozenset(sources), wanted) - free

    @cached_property
    def across(self) -> frozenset[str]:
        """Storages that live from forward to backward at the execution's level of recomputation."""
        if self.execution.recompute == "none":
            return self.for_backward
        given = self._sources_of(self.for_backward, stops=frozenset())
        if self.execution.recompute == "full":
            return given
        results = frozenset(
            name
            for place, call in enumerate(self.flow.calls)
            if self.flow.families[place] in ("matmul", "attention")
            for name in call.operator.results
            if name is not None
        )
        return self._sources_of(self.for_backward, stops=results) | (
            frozenset() if self.execution.is_compiled else results & self.flow.trained
        )

    def _sources_of(self, wanted: Iterable[str], *, stops: frozenset[str]) -> frozenset[str]:
        """Storages, given to the segment or among ``stops``, from which all ``wanted`` are computed."""
        return frozenset(
            storage
            for storage in self._closure(wanted, stops)
            if (storage in stops or storage not in self.flow.maker) and storage not in self.flow.parameters
        )

    def _closure(self, wanted: Iterable[str], stops: frozenset[str]) -> set[str]:
        """``wanted`` and everything they are computed from, up to ``stops``."""
        found: set[str] = set()
        waiting = list(wanted)
        while waiting:
            storage = waiting.pop()
            if storage in found:
                continue
            found.add(storage)
            place = self.flow.maker.get(storage)
            if place is not None and storage not in stops:
                waiting += [self.flow.storage[value.name] for value in self.flow.calls[place].operands]
        return found

    @cached_property
    def _made_again(self) -> frozenset[str]:
        """Storages that are not kept but wanted in the backward, and what they are computed from."""
        if self.execution.recompute == "none":
            return frozenset()
        return frozenset(self._closure(self.for_backward - self.across, self.across)) - self.across

    @cached_property
    def run_again(self) -> frozenset[int]:
        """Places of the calls that run a second time before the backward."""
        return frozenset(
            self.flow.maker[storage] for storage in self._made_again if storage in self.flow.maker
        )

    @cached_property
    def converted_again(self) -> frozenset[str]:
        """Values that are brought into their readers' layouts a second time: what is not kept, and weights."""
        if self.execution.recompute == "none":
            return frozenset()
        again = self._made_again | self.flow.parameters
        return frozenset(name for name, storage in self.flow.storage.items() if storage in again)

    def keeps_statistics(self, place: int) -> bool:
        """True where what a call saves beside its operands and results lives from forward to backward."""
        return self.execution.recompute == "none" or (
            self.flow.families[place] == "attention" and place not in self.run_again
        )
