"""Tables over classes of several nodes: how they are made from a normal form, added up and minimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.normal_form import NormalForm, Shared
from solver.problem import FloatArray, IntArray

__all__ = [
    "Classes",
    "Factor",
    "Refiner",
    "eliminated",
    "form_factors",
    "node_prices",
    "shared_axes",
]

BROADCAST_ENTRIES = 200_000
"""Sums up to this size are made in one piece; larger ones strategy by strategy, to save memory."""

SLICE_ENTRIES = 1_000_000
"""Size of the slices of sums that are projected: 8 MB, which a cache may hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The class of each strategy of a node; compared by identity, so that refinements can be remembered."""

    of: IntArray
    first: IntArray
    """The first strategy of each class."""

    @property
    def count(self) -> int:
        return int(self.first.size)


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A price on the classes of some distinct nodes, one axis each."""

    nodes: tuple[int, ...]
    classes: tuple[Classes, ...]
    costs: FloatArray


class Refiner:
    """Common refinements of classes, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Classes] = {}
        self._kept: list[Classes] = []  # keeps ids unique

    def classes(self, of: IntArray) -> Classes:
        """Classes from any labels."""
        _, first, labels = np.unique(of, return_index=True, return_inverse=True)
        found = Classes(labels, first)
        self._kept.append(found)
        return found

    def common(self, parts: Sequence[Classes]) -> Classes:
        """The coarsest classes that tell apart what any of the parts tells apart."""
        result, *rest = sorted(parts, key=id)
        for part in rest:
            result = self._pair(result, part)
        return result

    def _pair(self, left: Classes, right: Classes) -> Classes:
        if left is right or right.count == 1 or left.count == left.of.size:
            return left
        key = (id(left), id(right))
        if key not in self._known:
            self._known[key] = self.classes(left.of * right.count + right.of)
        return self._known[key]


def form_factors(form: NormalForm, refiner: Refiner) -> list[Factor]:
    """Every pair and every shared tensor as a factor."""
    pairs = [
        _factor(pair.nodes, [refiner.classes(classes) for classes in pair.classes], pair.costs, pair.classes)
        for pair in form.pairs
    ]
    return pairs + [_shared_factor(shared, refiner) for shared in form.shared]


def shared_axes(shared: Shared, refiner: Refiner) -> dict[int, Classes]:
    """The distinct nodes of a shared tensor, each with what the tensor can tell apart of it."""
    roles: dict[int, list[Classes]] = {shared.producer: [refiner.classes(shared.produced)]}
    for consumer, wanted in zip(shared.consumers, shared.wanted, strict=True):
        roles.setdefault(consumer, []).append(refiner.classes(wanted))
    return {node: refiner.common(parts) for node, parts in roles.items()}


def node_prices(costs: FloatArray, classes: Classes) -> FloatArray:
    """Least cost of a node's strategies in each class."""
    prices = np.full(classes.count, math.inf)
    np.minimum.at(prices, classes.of, costs)
    return prices


def eliminated(
    prices: FloatArray, node: int, own: Classes, factors: Sequence[Factor], axes: dict[int, Classes]
) -> Factor:
    """The least sum of ``prices`` and factors over one node, for all classes of the nodes in ``axes``."""
    terms = [_aligned(factor, node, own, axes) for factor in factors]
    shape = tuple(classes.count for classes in axes.values())
    if prices.size * math.prod(shape) <= BROADCAST_ENTRIES:
        total = prices.reshape(-1, *(1 for _ in shape))
        for term in terms:
            total = total + term
        least = np.broadcast_to(total, (prices.size, *shape)).min(axis=0)
    else:
        least = np.full(shape, math.inf)
        for strategy, price in enumerate(prices):
            np.minimum(least, sum((term[strategy] for term in terms), start=price), out=least)
    return Factor(tuple(axes), tuple(axes.values()), least)


def least_onto(
    prices: FloatArray,
    node: int,
    own: Classes,
    factors: Sequence[Factor],
    axes: dict[int, Classes],
    onto: Factor | None,
) -> Factor:
    """The least sum of ``prices`` and factors for all classes of ``onto``, a factor over some of the nodes.

    Without ``onto``, for each class of the node itself. Sums are made in slices of ``SLICE_ENTRIES``.
    """
    onto = onto or Factor((node,), (own,), prices)
    least = np.full(onto.costs.shape, math.inf)
    width = max(1, SLICE_ENTRIES // max(1, math.prod(classes.count for classes in axes.values())))
    for start in range(0, own.count, width):
        part = Classes(own.of, own.first[start : start + width])
        total = _summed(prices[start : start + width], node, part, factors, axes)
        places, smallest = _projected(total, {node: part, **axes}, onto)
        least[np.ix_(*places)] = np.minimum(least[np.ix_(*places)], smallest)
    return Factor(onto.nodes, onto.classes, least)


def _summed(
    prices: FloatArray, node: int, own: Classes, factors: Sequence[Factor], axes: dict[int, Classes]
) -> FloatArray:
    """(own classes, *axes) sum of prices and factors."""
    total = np.empty((prices.size, *(classes.count for classes in axes.values())))
    total[...] = prices.reshape(-1, *(1 for _ in axes))
    for factor in factors:
        total += _aligned(factor, node, own, axes)
    return total


def _projected(
    costs: FloatArray, axes: dict[int, Classes], onto: Factor
) -> tuple[list[IntArray], FloatArray]:
    """Least costs for the classes of another factor, told apart less; and which classes these are."""
    places: dict[int, IntArray] = {}
    for axis, (node, classes) in reversed(list(enumerate(axes.items()))):
        if node not in onto.nodes:
            costs = costs.min(axis=axis)
            continue
        coarse = onto.classes[onto.nodes.index(node)].of[classes.first]
        order = np.argsort(coarse, kind="stable")
        starts = np.flatnonzero(np.diff(coarse[order], prepend=-1))
        places[node] = coarse[order][starts]
        costs = np.minimum.reduceat(costs.take(order, axis=axis), starts, axis=axis)
    kept = [node for node in axes if node in onto.nodes]
    return [places[node] for node in onto.nodes], costs.transpose([kept.index(v) for v in onto.nodes])


def _aligned(factor: Factor, node: int, own: Classes, axes: dict[int, Classes]) -> FloatArray:
    """A factor over (node, *axes), with axes of length 1 where it does not depend on a node."""
    targets = {node: own, **axes}
    index = [classes.of[targets[v].first] for v, classes in zip(factor.nodes, factor.classes, strict=True)]
    position = {v: axis for axis, v in enumerate(targets)}
    order = sorted(range(len(index)), key=lambda axis: position[factor.nodes[axis]])
    shape = [1] * len(targets)
    for v, rows in zip(factor.nodes, index, strict=True):
        shape[position[v]] = rows.size
    return factor.costs[np.ix_(*index)].transpose(order).reshape(shape)


def _factor(
    nodes: tuple[int, ...], axes: list[Classes], costs: FloatArray, labels: tuple[IntArray, ...]
) -> Factor:
    """A factor from a table that is indexed by labels, of which some may not occur."""
    rows = [label[classes.first] for label, classes in zip(labels, axes, strict=True)]
    return Factor(nodes, tuple(axes), costs[np.ix_(*rows)])


def _shared_factor(shared: Shared, refiner: Refiner) -> Factor:
    """The price of the distinct versions, for all classes of the producer and the consumers."""
    axes = shared_axes(shared, refiner)
    nodes = tuple(axes)

    def along(node: int, labels: IntArray) -> IntArray:
        shape = [1] * len(nodes)
        shape[nodes.index(node)] = -1
        return labels[axes[node].first].reshape(shape)

    made = along(shared.producer, shared.produced)
    versions = [along(c, wanted) for c, wanted in zip(shared.consumers, shared.wanted, strict=True)]
    total = np.zeros([classes.count for classes in axes.values()])
    for number, version in enumerate(versions):
        price = shared.costs[made, version]
        for earlier in versions[:number]:
            price = np.where(version == earlier, 0.0, price)
        total += price
    return Factor(nodes, tuple(axes.values()), total)
