"""The search space on one mesh: every item with its candidates, and what each candidate costs and keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from autopar.capture.graph import Graph
from autopar.planner.memory import kept_by_operator, resting_bytes
from autopar.planner.mesh import MODEL, MeshAxis
from autopar.planner.operators import PlannedOperator, PlannedType
from autopar.planner.prices import PricedStrategy, Prices
from autopar.planner.regions import BLOCK
from autopar.planner.roles import allowed_choices
from autopar.planner.tensors import (
    Item,
    ParameterGroup,
    Tensor,
    parameter_groups,
    resting_placement,
)
from autopar.shardings.placement import REPLICATE, Layout, Placement, is_legal
from autopar.shardings.strategy import AxisChoice, Strategy, combined, divides

__all__ = ["Candidate", "Keep", "Space", "search_space"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to decide an item."""

    operands: tuple[Layout, ...]
    """Layouts in which the item wants what it reads."""
    results: tuple[Layout, ...]
    """Layouts in which it yields what it makes."""
    seconds: float
    """Per step, all uses of the item counted."""
    kept_bytes: float
    """Held on each device from here to the end of the step, conversions excluded."""
    strategy: Strategy | None = None
    """For operators."""


Keep = Callable[[PlannedOperator, Strategy, tuple[MeshAxis, ...]], bool]
"""Whether a strategy of an operator stays in the space; where it keeps none, all stay."""


@dataclass(frozen=True, slots=True)
class Space:
    """Items with their candidates, and the tensors that join them."""

    prices: Prices
    items: dict[Item, tuple[Candidate, ...]]
    tensors: tuple[Tensor, ...]
    groups: tuple[ParameterGroup, ...]

    def layouts(self, tensor: Tensor) -> frozenset[Layout]:
        """Every layout in which the tensor may be yielded or wanted."""
        made = {candidate.results[tensor.result] for candidate in self.items[tensor.producer]}
        wanted = {
            candidate.operands[use.position] for use in tensor.uses for candidate in self.items[use.item]
        }
        return frozenset(made | wanted)


def search_space(
    graph: Graph, types: Mapping[str, PlannedType], prices: Prices, keep: Keep | None = None
) -> Space:
    """All candidates of all items of ``graph`` on a mesh; of operators those that ``keep`` keeps."""
    tensors, groups = prices.tensors(graph, types), parameter_groups(graph)
    counts = {name: sum(call.type == name for call in graph.calls) for name in types}
    items: dict[Item, tuple[Candidate, ...]] = {}
    for name, planned in types.items():
        for operator in planned.operators:
            items[Item("operator", name, operator.name)] = _operator_candidates(
                operator, planned, prices, counts[name], keep
            )
    for graph_input in graph.inputs:
        layouts = _all_layouts(graph_input.value.shape, prices)
        items[Item("input", "", graph_input.value.name)] = tuple(
            Candidate((), (layout,), 0.0, 0.0) for layout in layouts
        )
    for name in graph.outputs:
        items[Item("output", "", name)] = (Candidate(((REPLICATE,) * len(prices.axes),), (), 0.0, 0.0),)
    uses = {tensor.producer: tensor for tensor in tensors}
    for group in groups:
        items[group.item] = _resting_candidates(group, uses[group.item], items, prices)
    _add_boundaries(items, types, tensors, prices)
    return Space(prices, items, tensors, groups)


def _operator_candidates(
    operator: PlannedOperator, planned: PlannedType, prices: Prices, count: int, keep: Keep | None
) -> tuple[Candidate, ...]:
    choices = tuple(
        allowed_choices(operator, axis, planned.labels, is_repeated=planned.role == BLOCK)
        for axis in prices.axes
    )
    found = _priced(operator, planned, choices, prices)
    if not found:
        # What each axis may do alone cannot be combined: leave the combination to all axes' full choices.
        found = _priced(operator, planned, (operator.choices,) * len(prices.axes), prices)
    if keep is not None:
        found = [each for each in found if keep(operator, each.strategy, prices.axes)] or found
    return tuple(
        Candidate(
            each.strategy.operands,
            each.strategy.results,
            count * prices.execution.microbatches * each.seconds,
            count * each.kept_bytes,
            each.strategy,
        )
        for each in found
    )


def _priced(
    operator: PlannedOperator,
    planned: PlannedType,
    choices: tuple[tuple[AxisChoice, ...], ...],
    prices: Prices,
) -> list[PricedStrategy]:
    """Every combination of choices that divides evenly, those of the same layouts once."""
    known = prices.known.strategies
    found: dict[object, PricedStrategy] = {}
    for combination in product(*choices):
        key = (planned.segment.name, operator.name, tuple(choice.name for choice in combination))
        if key not in known:
            known[key] = _price_of(operator, planned, combination, prices)
        priced = known[key]
        if priced is not None:
            found.setdefault((priced.strategy.operands, priced.strategy.results), priced)
    return list(found.values())


def _price_of(
    operator: PlannedOperator, planned: PlannedType, combination: tuple[AxisChoice, ...], prices: Prices
) -> PricedStrategy | None:
    strategy = combined(operator.call, combination)
    if not divides(operator.call, strategy, prices.sizes):
        return None
    seconds = prices.operator(operator.call, strategy.operands, strategy.results, planned).seconds
    kept = kept_by_operator(operator, strategy, prices.sizes, prices.kept(planned))
    return PricedStrategy(strategy, seconds, kept)


def _all_layouts(shape: tuple[int, ...], prices: Prices) -> tuple[Layout, ...]:
    """Replicated or sharded on any dim, per axis."""
    alphabet = (REPLICATE, *(Placement("S", dim) for dim in range(len(shape))))
    found = product(alphabet, repeat=len(prices.axes))
    return tuple(layout for layout in found if is_legal(shape, layout, prices.sizes))


def _resting_candidates(
    group: ParameterGroup, tensor: Tensor, items: Mapping[Item, tuple[Candidate, ...]], prices: Prices
) -> tuple[Candidate, ...]:
    """Layouts at rest: on model axes as some use wants it, or replicated; data axes are the engine's."""
    wanted = {candidate.operands[use.position] for use in tensor.uses for candidate in items[use.item]}
    whole = resting_placement(group.value)
    per_axis: list[list[Placement]] = []
    for position, axis in enumerate(prices.axes):
        shards = sorted({layout[position] for layout in wanted if layout[position].is_shard}, key=str)
        per_axis.append([REPLICATE, *shards] if axis.kind == MODEL else [whole])
    count = len(group.names)
    found = []
    for layout in product(*per_axis):
        if is_legal(group.value.shape, layout, prices.sizes):
            seconds = prices.upkeep_s(group.value, layout)
            kept = resting_bytes(group.value, layout, prices.sizes, prices.shard_ways)
            found.append(Candidate((), (layout,), count * seconds, count * kept))
    return tuple(found)


def _add_boundaries(
    items: dict[Item, tuple[Candidate, ...]],
    types: Mapping[str, PlannedType],
    tensors: Iterable[Tensor],
    prices: Prices,
) -> None:
    """Segment inputs take any layout that producers yield or readers want, partial sums excepted."""
    wanted: dict[Item, set[Layout]] = {}
    for tensor in tensors:
        boundaries = [use.item for use in tensor.uses if use.item.kind == "boundary"]
        for item in boundaries:
            wanted.setdefault(item, set())
        if tensor.producer.kind == "boundary":
            wanted.setdefault(tensor.producer, set()).update(
                candidate.operands[use.position]
                for use in tensor.uses
                if use.item in items
                for candidate in items[use.item]
            )
        elif boundaries and tensor.producer in items:
            yielded = {candidate.results[tensor.result] for candidate in items[tensor.producer]}
            for item in boundaries:
                wanted[item] |= yielded
    for item, layouts in wanted.items():
        legal = sorted((layout for layout in layouts if all(p.kind != "P" for p in layout)), key=str)
        plain = (REPLICATE,) * len(prices.axes)
        items[item] = tuple(
            Candidate((layout,), (layout,), 0.0, 0.0) for layout in dict.fromkeys((*legal, plain))
        )
