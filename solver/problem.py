"""What is chosen, and what a choice costs: nodes with strategies, pairwise prices, shared tensors, memory.

The problem in the field's standard form (one strategy per node, minimise node costs plus pairwise edge
costs, memory below a limit at every time), extended by ``Fan``: a tensor converted once per layout wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["USAGE_TOLERANCE", "Edge", "Fan", "InvalidProblemError", "Node", "Price", "Problem", "evaluate"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

USAGE_TOLERANCE = 1e-9
"""A usage fits when it exceeds its limit by no more than this share: sums of floats are not exact."""


class InvalidProblemError(ValueError):
    """The numbers do not state a problem; the message names the node, edge or fan."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One thing to be decided, with the price of each of its S strategies."""

    costs: FloatArray
    """(S,) cost of each strategy; inf = forbidden."""
    usages: FloatArray
    """(S,) usage held while the node is live, at least 0."""
    interval: tuple[int, int] = (0, 1)
    """Half-open interval of times in which the node is live; empty = never."""
    name: str = ""

    def __post_init__(self) -> None:
        label = f"node {self.name!r}"
        _set(self, "costs", _floats(self.costs, 1, f"{label}: costs"))
        _set(self, "usages", _usages(self.usages, f"{label}: usages"))
        if self.costs.size == 0:
            raise InvalidProblemError(f"{label} has no strategy.")
        if self.usages.size != self.costs.size:
            raise InvalidProblemError(f"{label}: {self.costs.size} costs but {self.usages.size} usages.")


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """A price on a pair of nodes."""

    nodes: tuple[int, int]
    costs: FloatArray
    """(Si, Sj) cost of each pair of strategies; inf = forbidden."""

    def __post_init__(self) -> None:
        _set(self, "costs", _floats(self.costs, 2, f"edge {self.nodes}: costs"))
        if self.nodes[0] == self.nodes[1]:
            raise InvalidProblemError(f"edge {self.nodes} joins a node with itself: add it to its costs.")


@dataclass(frozen=True, slots=True, eq=False)
class Fan:
    """One tensor and all its uses: each distinct class (layout) wanted is made, paid and kept once.

    A node may occur several times among the consumers, and may be the producer too.
    """

    producer: int
    consumers: tuple[int, ...]
    produced: IntArray
    """(S of the producer,) class that each strategy of the producer yields."""
    wanted: tuple[IntArray, ...]
    """For each consumer (S of the consumer,): the class that each of its strategies wants."""
    costs: FloatArray
    """(P, W) price, at least 0, of converting produced class p into wanted class w; inf = forbidden."""
    usages: FloatArray
    """(W,) usage held while version w exists, charged once however many consumers want it."""
    interval: tuple[int, int] = (0, 1)
    """Half-open interval of times in which the versions are live; empty = never."""

    def __post_init__(self) -> None:
        label = f"fan of node {self.producer}"
        _set(self, "costs", _floats(self.costs, 2, f"{label}: costs"))
        _set(self, "usages", _usages(self.usages, f"{label}: usages"))
        _set(self, "produced", _classes(self.produced, self.costs.shape[0], f"{label}: produced"))
        width = self.costs.shape[1]
        wanted = tuple(
            _classes(classes, width, f"{label}: wanted by node {c}")
            for c, classes in zip(self.consumers, self.wanted, strict=False)
        )
        _set(self, "wanted", wanted)
        if len(self.wanted) != len(self.consumers):
            raise InvalidProblemError(f"{label}: {len(self.consumers)} consumers, {len(self.wanted)} wanted.")
        if self.usages.size != width:
            raise InvalidProblemError(f"{label}: {width} wanted classes but {self.usages.size} usages.")
        if self.costs.size and self.costs.min() < 0:
            raise InvalidProblemError(f"{label}: a conversion costs {self.costs.min()}, below 0.")


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One strategy per node, at least cost, with the live usage within its limit at every time."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    fans: tuple[Fan, ...] = ()
    usage_limit: float = math.inf

    def __post_init__(self) -> None:
        for name in ("nodes", "edges", "fans"):
            _set(self, name, tuple(getattr(self, name)))
        if math.isnan(self.usage_limit) or self.usage_limit < 0:
            raise InvalidProblemError(f"usage_limit is {self.usage_limit}, below 0.")
        for edge in self.edges:
            shape = tuple(self._strategies(node, f"edge {edge.nodes}") for node in edge.nodes)
            if edge.costs.shape != shape:
                raise InvalidProblemError(
                    f"edge {edge.nodes}: costs have shape {edge.costs.shape}, its nodes' strategies {shape}."
                )
        for fan in self.fans:
            label = f"fan of node {fan.producer}"
            for node, classes in _maps(fan):
                if classes.size != self._strategies(node, label):
                    raise InvalidProblemError(
                        f"{label}: {classes.size} classes for the {self._strategies(node, label)} strategies "
                        f"of node {node} {self.nodes[node].name!r}."
                    )

    def _strategies(self, node: int, label: str) -> int:
        if not 0 <= node < len(self.nodes):
            raise InvalidProblemError(f"{label} names node {node}, but there are {len(self.nodes)} nodes.")
        return self.nodes[node].costs.size


@dataclass(frozen=True, slots=True)
class Price:
    """What a choice costs."""

    cost: float
    """inf when a strategy or a pair of strategies is forbidden."""
    peak_usage: float
    """Largest sum of live usages over all times."""

    def fits(self, usage_limit: float) -> bool:
        """True when the peak is within the limit (up to ``USAGE_TOLERANCE``)."""
        return self.peak_usage <= usage_limit * (1 + USAGE_TOLERANCE)


def evaluate(problem: Problem, choice: Sequence[int]) -> Price:
    """Cost and peak usage of one strategy per node, summed from the problem and the choice alone."""
    if len(choice) != len(problem.nodes):
        raise InvalidProblemError(f"{len(choice)} strategies chosen for {len(problem.nodes)} nodes.")
    terms = [float(node.costs[s]) for node, s in zip(problem.nodes, choice, strict=True)]
    terms += [float(edge.costs[choice[edge.nodes[0]], choice[edge.nodes[1]]]) for edge in problem.edges]
    held = [(n.interval, float(n.usages[s])) for n, s in zip(problem.nodes, choice, strict=True)]
    for fan in problem.fans:
        made = int(fan.produced[choice[fan.producer]])
        for version in sorted(_versions(fan, choice)):
            terms.append(float(fan.costs[made, version]))
            held.append((fan.interval, float(fan.usages[version])))
    return Price(cost=math.fsum(terms), peak_usage=_peak(held))


def _versions(fan: Fan, choice: Sequence[int]) -> set[int]:
    """The distinct classes that the chosen strategies of the consumers want."""
    return {int(classes[choice[c]]) for c, classes in zip(fan.consumers, fan.wanted, strict=True)}


def _peak(held: list[tuple[tuple[int, int], float]]) -> float:
    """Largest sum of usages that are live at one time."""
    live = [(interval, usage) for interval, usage in held if interval[0] < interval[1] and usage > 0]
    if not live:
        return 0.0
    starts = np.array([interval[0] for interval, _ in live])
    ends = np.array([interval[1] for interval, _ in live])
    usages = np.array([usage for _, usage in live])
    times = np.concatenate([starts, ends])
    order = np.lexsort((np.concatenate([usages, -usages]), times))  # at one time, ends come before starts
    running = np.cumsum(np.concatenate([usages, -usages])[order])
    return float(running.max())


def _maps(fan: Fan) -> Iterator[tuple[int, IntArray]]:
    """Every (node, class of each of its strategies) that a fan mentions."""
    yield fan.producer, fan.produced
    yield from zip(fan.consumers, fan.wanted, strict=True)


def _set(target: Any, name: str, value: object) -> None:
    object.__setattr__(target, name, value)


def _floats(values: Any, dims: int, label: str) -> FloatArray:
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.ndim != dims:
        raise InvalidProblemError(f"{label} must have {dims} dimensions, not {array.ndim}.")
    if array.size and not array.min() > -math.inf:  # NaN fails this comparison too
        raise InvalidProblemError(f"{label} hold a NaN or -inf.")
    return array


def _usages(values: Any, label: str) -> FloatArray:
    array = _floats(values, 1, label)
    if array.size and not (array.min() >= 0 and array.max() < math.inf):
        raise InvalidProblemError(f"{label} must be finite and at least 0: {array.min()} to {array.max()}.")
    return array


def _classes(values: Any, count: int, label: str) -> IntArray:
    array: IntArray = np.asarray(values, dtype=np.int64)
    if array.ndim != 1:
        raise InvalidProblemError(f"{label} must have 1 dimension, not {array.ndim}.")
    if array.size and not (array.min() >= 0 and array.max() < count):
        raise InvalidProblemError(f"{label}: classes {array.min()} to {array.max()}, but there are {count}.")
    return array
