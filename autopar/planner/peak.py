"""When in a step a device holds most, and what: the backward of each call in turn, and the optimizer.

Forward to backward, calls pile up what they keep; from the last call to the first each takes it down again,
holds its own working set, and leaves gradients. So the peak lies in the loss head (large vocabulary, little
kept), in a block (recomputation), in the embedding or in the optimizer (few tokens).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from autopar.capture.graph import Graph
from autopar.planner.memory import GRADIENT_BYTES, kept_by_operator, value_bytes
from autopar.planner.operators import PlannedType
from autopar.planner.prices import Prices
from autopar.planner.tensors import ParameterGroup, Tensor
from autopar.planner.working_set import backward_working_set
from autopar.shardings.placement import Layout, local_shape
from autopar.shardings.strategy import Strategy
from cost_models.dtypes import dtype_bytes
from cost_models.memory import allocated_bytes

__all__ = ["Peak", "peak_of"]

OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes at the fullest moment, parameters and optimizer state at rest left out."""

    gradients: int
    """Of parameters whose backward is over."""
    activations: int
    """Kept by the calls that have not had their backward, that of the moment included."""
    temporaries: int
    """The rest of the working set."""
    moment: str
    """The segment type whose backward runs, or ``optimizer``."""

    @property
    def total(self) -> int:
        return self.gradients + self.activations + self.temporaries


def peak_of(
    graph: Graph,
    types: Mapping[str, PlannedType],
    tensors: tuple[Tensor, ...],
    versions: Mapping[int, tuple[Layout, ...]],
    groups: tuple[ParameterGroup, ...],
    resting: Mapping[str, Layout],
    strategies: Mapping[tuple[str, str], Strategy],
    prices: Prices,
) -> Peak:
    """The fullest moment of a step of all calls of ``graph``.

    ``versions`` gives, by tensor position, the layouts that readers want; ``resting`` by first name of a group.
    """
    return _Step(graph, types, tensors, versions, groups, resting, strategies, prices).peak()


class _Step:
    """One step, call by call."""

    def __init__(
        self,
        graph: Graph,
        types: Mapping[str, PlannedType],
        tensors: tuple[Tensor, ...],
        versions: Mapping[int, tuple[Layout, ...]],
        groups: tuple[ParameterGroup, ...],
        resting: Mapping[str, Layout],
        strategies: Mapping[tuple[str, str], Strategy],
        prices: Prices,
    ) -> None:
        self.graph, self.types, self.prices = graph, types, prices
        self.tensors, self.versions = tensors, versions
        self.groups, self.resting = groups, resting
        self.strategies = {
            name: {op.name: strategies[name, op.name] for op in planned.operators}
            for name, planned in types.items()
        }
        self.has_engine = any(axis.is_data for axis in prices.axes)
        self.allocated: Callable[[float], int] = lambda size: allocated_bytes(size, prices.cluster.device)

    def peak(self) -> Peak:
        kept, working, gradients = self._kept(), self._working(), self._gradients()
        names = [call.type for call in self.graph.calls]
        total = sum(sum(each.values()) for each in gradients)
        is_accumulated = self.prices.execution.microbatches > 1
        done = 0.0
        moments = []
        for place in reversed(range(len(names))):
            name = names[place]
            before = sum(kept[other] for other in names[:place])
            own = kept[name]
            held = total if is_accumulated else done
            moments.append(Peak(round(held), round(before + own), round(max(working[name] - own, 0)), name))
            done += sum(gradients[place].values())
        moments.append(Peak(round(total), 0, 0, OPTIMIZER))
        return max(moments, key=lambda moment: moment.total)

    def _kept(self) -> dict[str, float]:
        """What one call of each type keeps from forward to backward."""
        counts = Counter(call.type for call in self.graph.calls)
        found = dict.fromkeys(self.types, 0.0)
        for position, tensor in enumerate(self.tensors):
            if tensor.kept_count:
                for layout in self.versions[position]:
                    size = value_bytes(tensor.value, layout, self.prices.sizes)
                    share = tensor.kept_count / counts[tensor.producer.type]
                    found[tensor.producer.type] += share * self.allocated(size)
        for name, planned in self.types.items():
            kept, strategies = self.prices.kept(planned), self.strategies[name]
            for operator in planned.operators:
                own = kept_by_operator(operator, strategies[operator.name], self.prices.sizes, kept)
                found[name] += self.allocated(own) if own else 0
            if kept.execution.recompute == "none" and not self.has_engine:
                found[name] += self._casts(planned)
        return found

    def _casts(self, planned: PlannedType) -> int:
        """16-bit copies of the weights of one call's products."""
        traffic, total = self.prices.fusion(planned).traffic, 0
        for operator in planned.operators:
            if traffic[operator.name].family == "matmul":
                strategy = self.strategies[planned.segment.name][operator.name]
                for position in traffic[operator.name].weights:
                    value = operator.call.operands[position]
                    total += self.allocated(
                        value_bytes(value, strategy.operands[position], self.prices.sizes)
                    )
        return total

    def _working(self) -> dict[str, int]:
        return {
            name: backward_working_set(
                self.prices.fusion(planned),
                self.strategies[name],
                self.prices.sizes,
                self.allocated,
                casts_weights=not self.has_engine,
            )
            for name, planned in self.types.items()
        }

    def _gradients(self) -> list[dict[str, float]]:
        """Gradients that the backward of each call leaves, by parameter group; of tied weights the last call's."""
        left = {group.item.name: len(group.names) for group in self.groups if group.value.requires_grad}
        by_type: dict[str, list[ParameterGroup]] = {}
        for group in self.groups:
            for name, _ in group.places:
                by_type.setdefault(name, []).append(group)
        found: list[dict[str, float]] = []
        for call in reversed(self.graph.calls):
            mine = {}
            for group in by_type.get(call.type, ()):
                name = group.item.name
                if left.get(name, 0) and name not in mine:
                    left[name] -= 1
                    mine[name] = self._gradient_bytes(group)
            found.append(mine)
        return found[::-1]

    def _gradient_bytes(self, group: ParameterGroup) -> float:
        local = prod(local_shape(group.value.shape, self.resting[group.item.name], self.prices.sizes))
        return self.allocated(GRADIENT_BYTES * local / self.prices.shard_ways)


def resting_allocation(
    groups: tuple[ParameterGroup, ...], resting: Mapping[str, Layout], prices: Prices, each: int
) -> int:
    """``each`` bytes for every number of every trained parameter, as the allocator rounds them."""
    total = 0
    for group in groups:
        if group.value.requires_grad:
            local = prod(local_shape(group.value.shape, resting[group.item.name], prices.sizes))
            size = allocated_bytes(each * local / prices.shard_ways, prices.cluster.device)
            total += len(group.names) * size
    return total


def buffer_bytes(groups: tuple[ParameterGroup, ...], resting: Mapping[str, Layout], prices: Prices) -> int:
    """Parameters that are not trained, and buffers."""
    return sum(
        len(group.names)
        * prod(local_shape(group.value.shape, resting[group.item.name], prices.sizes))
        * dtype_bytes(group.value.dtype)
        // prices.shard_ways
        for group in groups
        if not group.value.requires_grad
    )
