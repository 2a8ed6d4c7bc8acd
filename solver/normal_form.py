"""The problem as every method sees it: finite node costs, pairs over classes, shared fans, loads over time.

Strategies that a pair cannot tell apart share a class; an edge and a fan with one consumer are both a
``Pair``. What never matters (no limit, never live, no usage) is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.loads import Load, joined
from solver.problem import USAGE_TOLERANCE, Edge, Fan, FloatArray, IntArray, Problem

__all__ = ["NormalForm", "Pair", "Shared", "normal_form", "picked", "restricted", "row_classes"]


NEVER = (0, 0)
"""The time range of what is never live."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A price on the classes of two different nodes."""

    nodes: tuple[int, int]
    classes: tuple[IntArray, IntArray]
    """For each of the two nodes, the class of each of its strategies."""
    costs: FloatArray
    """(classes of the first, classes of the second); inf = forbidden."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """A fan with several consumers: each distinct class wanted is paid and held once."""

    producer: int
    produced: IntArray
    consumers: tuple[int, ...]
    wanted: tuple[IntArray, ...]
    costs: FloatArray
    """(P, W) price of a version; inf = forbidden."""
    usages: FloatArray
    """(W,) usage of a version, all 0 when it never matters."""
    times: tuple[int, int]
    """Half-open range of time points."""


@dataclass(frozen=True, slots=True, eq=False)
class NormalForm:
    """A problem without anything that cannot be chosen or cannot matter."""

    costs: tuple[FloatArray, ...]
    """For each node, the finite cost of each of its remaining strategies; empty = infeasible."""
    strategies: tuple[IntArray, ...]
    """For each node, the number of each remaining strategy in the problem."""
    pairs: tuple[Pair, ...]
    shared: tuple[Shared, ...]
    loads: tuple[Load, ...]
    """For each node, its usage over time."""
    room: FloatArray
    """(time points,) usage that fits at each time at which the usage can peak."""
    constant: float = 0.0
    """Cost of what has been decided already."""

    def choice(self, picks: tuple[int, ...]) -> tuple[int, ...]:
        """The problem's own strategy numbers of one pick per node."""
        return tuple(int(own[pick]) for own, pick in zip(self.strategies, picks, strict=True))


def normal_form(problem: Problem) -> NormalForm:
    """The same problem, same optimum, with choices translated back by ``NormalForm.choice``."""
    fans = [_distinct_uses(fan) for fan in problem.fans]
    priced = _priced_alone(problem, fans)
    strategies = [np.flatnonzero(np.isfinite(costs)) for costs in priced]
    is_limited = problem.usage_limit < math.inf
    times, time_points = _time_points(problem) if is_limited else ({}, 0)
    pairs = [_edge_pair(edge, strategies) for edge in problem.edges]
    loads = [
        _load(times.get(node.interval, NEVER), node.usages[own])
        for node, own in zip(problem.nodes, strategies, strict=True)
    ]
    shared = []
    for fan in fans:
        own = _restricted(fan, strategies, times.get(fan.interval, NEVER))
        if len(own.consumers) > 1:
            shared.append(own)
        elif own.consumers:
            consumer = own.consumers[0]
            loads[consumer] = joined(loads[consumer], _load(own.times, own.usages[own.wanted[0]]))
            if consumer != own.producer:
                pairs.append(_single_use(own))
    return NormalForm(
        costs=tuple(costs[own] for costs, own in zip(priced, strategies, strict=True)),
        strategies=tuple(strategies),
        pairs=tuple(pair for pair in pairs if pair.costs.any()),
        shared=tuple(shared),
        loads=tuple(loads),
        room=np.full(time_points, problem.usage_limit * (1 + USAGE_TOLERANCE)),
    )


def restricted(form: NormalForm, keep: Sequence[NDArray[np.bool_]]) -> NormalForm:
    """The form with the marked strategies only; ``choice`` of the result gives picks of ``form``."""
    index = [np.flatnonzero(marked) for marked in keep]
    return NormalForm(
        costs=tuple(costs[own] for costs, own in zip(form.costs, index, strict=True)),
        strategies=tuple(index),
        pairs=tuple(
            Pair(pair.nodes, _taken(pair.classes, [index[v] for v in pair.nodes]), pair.costs)
            for pair in form.pairs
        ),
        shared=tuple(
            replace(
                shared,
                produced=shared.produced[index[shared.producer]],
                wanted=tuple(w[index[c]] for c, w in zip(shared.consumers, shared.wanted, strict=True)),
            )
            for shared in form.shared
        ),
        loads=tuple(
            Load(load.starts, load.ends, load.usages[:, own])
            for load, own in zip(form.loads, index, strict=True)
        ),
        room=form.room,
        constant=form.constant,
    )


def _taken(classes: tuple[IntArray, IntArray], index: list[IntArray]) -> tuple[IntArray, IntArray]:
    return classes[0][index[0]], classes[1][index[1]]


def row_classes(table: FloatArray) -> tuple[IntArray, IntArray]:
    """Equal rows of a table share a class: (class of each row, first row of each class)."""
    content, width = (table + 0.0).tobytes(), 8 * table.shape[1]  # + 0.0 makes -0.0 and 0.0 one
    seen: dict[bytes, int] = {}
    classes: list[int] = []
    first: list[int] = []
    for row in range(table.shape[0]):
        found = seen.setdefault(content[row * width : (row + 1) * width], len(first))
        if found == len(first):
            first.append(row)
        classes.append(found)
    return np.array(classes, dtype=np.int64), np.array(first, dtype=np.int64)


def picked(table: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
    """Some rows and columns of a table (several times faster than ``np.ix_`` on small tables)."""
    some: FloatArray = table[rows][:, columns]
    return some


def _edge_pair(edge: Edge, strategies: list[IntArray]) -> Pair:
    i, j = edge.nodes
    table = picked(edge.costs, strategies[i], strategies[j])
    row_class, rows = row_classes(table)
    column_class, columns = row_classes(table.T)
    return Pair((i, j), (row_class, column_class), picked(table, rows, columns))


def _load(times: tuple[int, int], usages: FloatArray) -> Load:
    """The load of one range of times, without ranges when nothing is ever held."""
    count = int(times[0] < times[1] and bool(usages.any()))
    return Load(np.array(times[:1])[:count], np.array(times[1:])[:count], usages[None][:count])


def _single_use(fan: Shared) -> Pair:
    """A fan with one consumer is a pair."""
    return Pair((fan.producer, fan.consumers[0]), (fan.produced, fan.wanted[0]), fan.costs)


def _distinct_uses(fan: Fan) -> Fan:
    """The fan without consumers that want the same classes as themselves once more."""
    uses = {(c, w.tobytes()): (c, w) for c, w in zip(fan.consumers, fan.wanted, strict=True)}
    consumers, wanted = tuple(c for c, _ in uses.values()), tuple(w for _, w in uses.values())
    return Fan(fan.producer, consumers, fan.produced, wanted, fan.costs, fan.usages, fan.interval)


def _priced_alone(problem: Problem, fans: list[Fan]) -> list[FloatArray]:
    """Costs of every node, with those of tensors that only their own producer uses."""
    costs = [node.costs for node in problem.nodes]
    for fan in fans:
        if fan.consumers == (fan.producer,):
            costs[fan.producer] = costs[fan.producer] + fan.costs[fan.produced, fan.wanted[0]]
    return costs


def _restricted(fan: Fan, strategies: list[IntArray], times: tuple[int, int]) -> Shared:
    """The fan over the remaining strategies; its usages are 0 when it is never live."""
    return Shared(
        producer=fan.producer,
        produced=fan.produced[strategies[fan.producer]],
        consumers=fan.consumers,
        wanted=tuple(w[strategies[c]] for c, w in zip(fan.consumers, fan.wanted, strict=True)),
        costs=fan.costs,
        usages=fan.usages if times[0] < times[1] else np.zeros_like(fan.usages),
        times=times,
    )


def _time_points(problem: Problem) -> tuple[dict[tuple[int, int], tuple[int, int]], int]:
    """The range of time points in which each interval is live, and how many points there are.

    Usage can peak only where something starts and nothing starts again before something ends.
    """
    intervals = {n.interval for n in problem.nodes} | {f.interval for f in problem.fans}
    live = [interval for interval in intervals if interval[0] < interval[1]]
    starts = np.unique(np.array([start for start, _ in live], dtype=np.int64))
    ends = np.unique(np.array([end for _, end in live], dtype=np.int64))
    next_end = np.searchsorted(ends, starts, side="right")
    is_last = np.append(next_end[1:] != next_end[:-1], True)[: starts.size]
    peaks = starts[is_last]
    ranges = {
        interval: (int(np.searchsorted(peaks, interval[0])), int(np.searchsorted(peaks, interval[1])))
        for interval in intervals
    }
    return ranges, int(peaks.size)
