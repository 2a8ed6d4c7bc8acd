"""What one segment holds while its backward runs: kept tensors, gradients on their way, copies of weights.

The backward is played operator by operator from the last to the first, fused groups as one: gradients are
made where a kernel writes them and die with the operator that made their tensor; what was kept dies with the
last backward that reads it; gradients of parameters stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from autopar.planner.fusion import Fusion
from autopar.planner.traffic import Traffic
from autopar.shardings.placement import local_shape
from autopar.shardings.strategy import Strategy
from cost_models.dtypes import dtype_bytes

__all__ = ["backward_working_set"]

RESTING_BYTES = 4
"""Gradients of parameters are float32."""


def backward_working_set(
    fusion: Fusion,
    strategies: Mapping[str, Strategy],
    sizes: tuple[int, ...],
    allocated: Callable[[float], int],
    *,
    casts_weights: bool,
) -> int:
    """Most bytes of one call's backward, its kept tensors and the gradients of its parameters included.

    ``strategies`` by operator name; ``allocated`` rounds a tensor as the allocator does; ``casts_weights``
    says that the program itself makes 16-bit copies of weights (no data-parallel engine does).
    """
    return _Backward(fusion, strategies, sizes, allocated, casts_weights).peak()


class _Backward:
    """One backward, played once."""

    def __init__(
        self,
        fusion: Fusion,
        strategies: Mapping[str, Strategy],
        sizes: tuple[int, ...],
        allocated: Callable[[float], int],
        casts_weights: bool,
    ) -> None:
        self.fusion, self.flow, self.kept = fusion, fusion.flow, fusion.kept
        self.strategies, self.sizes, self.allocated = strategies, sizes, allocated
        self.casts_weights = casts_weights
        self.live: dict[tuple[str, str], int] = {}
        self.highest = 0

    def peak(self) -> int:
        self._hold_what_was_kept()
        for storage in self.flow.outputs & self.flow.trained:
            self._hold("gradient", storage, self._storage_bytes(storage))
        for unit in self._units():
            self._run(unit)
        return self.highest

    def _hold(self, kind: str, name: str, size: int) -> None:
        self.live[kind, name] = max(size, self.live.get((kind, name), 0))
        self.highest = max(self.highest, sum(self.live.values()))

    def _drop(self, kind: str, name: str) -> int:
        return self.live.pop((kind, name), 0)

    def _hold_what_was_kept(self) -> None:
        for storage in self.kept.for_backward & (self.flow.trained | set(self.flow.maker)):
            self._hold("kept", storage, self._storage_bytes(storage))
        for place, call in enumerate(self.flow.calls):
            if self.flow.is_work(place) and call.operands:
                shape = self._operand_shape(place, 0)
                saved = self.kept.saved[place]
                extra = prod(shape) * saved.extra_bytes_per_element + prod(shape[:-1]) * saved.bytes_per_row
                self._hold("extra", str(place), self.allocated(extra) if extra else 0)
            traffic = self._traffic(place)
            if self.casts_weights and traffic.family == "matmul":
                for position in traffic.weights:
                    self._hold("cast", f"{place} {position}", self._operand_bytes(place, position))

    def _units(self) -> list[tuple[int, ...]]:
        """Calls whose backward is one kernel or run, from the last to the first."""
        found: dict[int, tuple[int, ...]] = {}
        for place in range(len(self.flow.calls)):
            if self.flow.is_work(place):
                group = self.fusion.groups[place]
                members = self.fusion.members.get(group, ()) if self.fusion.is_fusible(place) else (place,)
                found[members[-1]] = members
        return [found[last] for last in sorted(found, reverse=True)]

    def _run(self, unit: tuple[int, ...]) -> None:
        made = [(place, position) for place in unit for position in self._traffic(place).gradient_writes]
        inputs = [pair for pair in made if not self._is_parameter(*pair)]
        if self.fusion.is_fusible(unit[0]):
            self._drop_dead(unit)  # its kernel may write over what it reads for the last time
        self._temporary(unit)
        for place, position in inputs:
            self._hold("gradient", self._storage(place, position), self._operand_bytes(place, position))
        for place, position in made:
            if self._is_parameter(place, position):
                self._parameter_gradient(place, position)
        self._pass_on(unit)
        self._drop_dead(unit)

    def _temporary(self, unit: tuple[int, ...]) -> None:
        """Beside what autograd holds: float32 sums of attention's query gradient, of an eager loss's rows."""
        for place in unit:
            family = self.flow.families[place]
            is_eager_loss = family == "cross_entropy" and not self.fusion.is_fusible(place)
            if family == "attention" or is_eager_loss:
                self._hold("temporary", "", self.allocated(4 * prod(self._operand_shape(place, 0))))

    def _parameter_gradient(self, place: int, position: int) -> None:
        name = f"{place} {position}"
        wide = self.allocated(RESTING_BYTES * prod(self._operand_shape(place, position)))
        if self.flow.calls[place].operands[position].dtype == "float32":
            self._hold("parameter", name, wide)
            return
        self._hold("narrow", name, self._operand_bytes(place, position))
        self._drop("cast", name)
        self._hold("parameter", name, wide)
        self._drop("narrow", name)

    def _pass_on(self, unit: tuple[int, ...]) -> None:
        """Operands whose gradient is that of the result take it over."""
        for place in unit:
            passed = set(range(len(self.flow.calls[place].operands))) - set(
                self._traffic(place).gradient_writes
            )
            for position in passed:
                storage = self._storage(place, position)
                is_outside = self.flow.maker.get(storage, -1) not in unit
                if storage in self.flow.trained and is_outside and ("gradient", storage) not in self.live:
                    self.live["gradient", storage] = 0

    def _drop_dead(self, unit: tuple[int, ...]) -> None:
        """Gradients of what the unit made, and what was kept for it alone."""
        self._drop("temporary", "")
        for place in unit:
            self._drop("extra", str(place))
            for name in self.flow.calls[place].operator.results:
                if name is not None:
                    self._drop("gradient", name)
        still = frozenset().union(*(self.kept.needs(place) for place in range(unit[0])))
        for kind, name in list(self.live):
            if kind == "kept" and name not in still:
                self._drop(kind, name)

    def _traffic(self, place: int) -> Traffic:
        return self.fusion.traffic[self.flow.calls[place].operator.name]

    def _storage(self, place: int, position: int) -> str:
        return self.flow.storage[self.flow.calls[place].operands[position].name]

    def _is_parameter(self, place: int, position: int) -> bool:
        return self._storage(place, position) in self.flow.parameters

    def _operand_shape(self, place: int, position: int) -> tuple[int, ...]:
        call = self.flow.calls[place]
        layout = self.strategies[call.operator.name].operands[position]
        return local_shape(call.operands[position].shape, layout, self.sizes)

    def _operand_bytes(self, place: int, position: int) -> int:
        dtype = self.flow.calls[place].operands[position].dtype
        return self.allocated(prod(self._operand_shape(place, position)) * dtype_bytes(dtype))

    def _storage_bytes(self, storage: str) -> int:
        """In the layout in which it is made, or read first."""
        value, place = self.flow.value(storage), self.flow.maker.get(storage)
        if place is not None:
            call = self.flow.calls[place]
            position = call.operator.results.index(storage)
            layout = self.strategies[call.operator.name].results[position]
            return self.allocated(
                prod(local_shape(value.shape, layout, self.sizes)) * dtype_bytes(value.dtype)
            )
        readers = self.flow.readers.get(storage, ())
        return max((self._operand_bytes(r.call, r.operand) for r in readers), default=0)
