"""A normal form that shrinks: each operation here keeps the optimum and records how to undo it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.loads import Load, disjoint, joined, reindexed
from solver.normal_form import NormalForm, Pair, Shared, picked, row_classes
from solver.problem import FloatArray, IntArray

__all__ = ["Dependent", "NothingFitsError", "WorkingForm"]


class NothingFitsError(Exception):
    """Proven while shrinking: no choice satisfies everything."""


@dataclass(frozen=True, slots=True, eq=False)
class Dependent:
    """A node whose best strategy follows from the strategies of others."""

    node: int
    leaders: tuple[int, ...]
    strategy: IntArray
    """Strategy number of the node for the strategy numbers of its leaders (one dimension each)."""


class WorkingForm:
    """Mutable copy of a normal form, with the tables that each node takes part in."""

    def __init__(self, form: NormalForm) -> None:
        self.costs = list(form.costs)
        self.strategies = list(form.strategies)
        self.counts = [int(own.max(initial=-1)) + 1 for own in form.strategies]
        self.pairs: dict[int, Pair] = {}
        self.shared: dict[int, Shared] = {}
        self.pairs_of: list[set[int]] = [set() for _ in form.costs]
        self.shared_of: list[set[int]] = [set() for _ in form.costs]
        self.loads = list(form.loads)
        self.untidy_loads = set(range(len(form.costs)))
        self.room = form.room.copy()
        self.constant = form.constant
        self.steps: list[Dependent] = []
        self.is_gone = np.zeros(len(form.costs), dtype=bool)
        self.changed: set[int] = set(range(len(form.costs)))
        self._numbers = itertools.count()
        for pair in form.pairs:
            self.add_pair(pair)
        for shared in form.shared:
            self.add_shared(shared)

    def neighbours(self, node: int) -> set[int]:
        """Nodes that share a pair with a node."""
        return {other for number in self.pairs_of[node] for other in self.pairs[number].nodes} - {node}

    def oriented(self, number: int, node: int) -> tuple[int, IntArray, IntArray, FloatArray]:
        """A pair seen from one node: (other node, own classes, other's classes, table)."""
        pair = self.pairs[number]
        if pair.nodes[0] == node:
            return pair.nodes[1], pair.classes[0], pair.classes[1], pair.costs
        return pair.nodes[0], pair.classes[1], pair.classes[0], pair.costs.T

    def add_pair(self, pair: Pair) -> None:
        """Add a pair, merged with the one that its nodes may have already."""
        i, j = pair.nodes
        for number in self.pairs_of[i] & self.pairs_of[j]:
            _, i_class, j_class, costs = self.oriented(number, i)
            pair = _sum(pair, Pair((i, j), (i_class, j_class), costs))
            self._drop_pair(number)
        self._store(self._tidy(pair))

    def remove_pair(self, number: int) -> Pair:
        """Take a pair out of the form."""
        pair = self.pairs[number]
        self._drop_pair(number)
        return pair

    def add_shared(self, shared: Shared) -> None:
        """Add a shared tensor, as a pair or node cost where that is all it is."""
        shared = self._settled(_compressed(shared))
        self._forbid_unusable(shared)
        if len(shared.consumers) == 1:
            self._add_single_use(shared)
        elif shared.consumers and (shared.costs.any() or shared.usages.any()):
            number = next(self._numbers)
            self.shared[number] = shared
            for node in {shared.producer, *shared.consumers}:
                self.shared_of[node].add(number)

    def restrict(self, node: int, keep: NDArray[np.bool_]) -> None:
        """Only the strategies marked in ``keep`` remain."""
        if keep.all():
            return
        if not keep.any():
            raise NothingFitsError
        self.costs[node] = self.costs[node][keep]
        self.strategies[node] = self.strategies[node][keep]
        self._remap(node, node, np.flatnonzero(keep))

    def follow(self, follower: int, leader: int, strategy: IntArray) -> None:
        """Merge a node into another whose strategy determines its own (index for each of the leader's)."""
        self._record(follower, (leader,), strategy)
        self.costs[leader] = self.costs[leader] + self.costs[follower][strategy]
        self._remap(follower, leader, strategy)
        self._retire(follower)

    def remove_free(self, node: int) -> None:
        """Remove a node without usage and with at most two neighbours: they get its best price."""
        tables = [self.oriented(number, node) for number in sorted(self.pairs_of[node])]
        total = self.costs[node].reshape(-1, *(1 for _ in tables))
        for axis, (_, own, _, costs) in enumerate(tables):
            shape = [1] * total.ndim
            shape[0], shape[1 + axis] = own.size, costs.shape[1]
            total = total + costs[own].reshape(shape)
        best = total.argmin(axis=0)
        price = np.take_along_axis(total, best[None], axis=0)[0]
        self._record(node, tuple(t[0] for t in tables), best[np.ix_(*(t[2] for t in tables))])
        for number in list(self.pairs_of[node]):
            self._drop_pair(number)
        self._retire(node)
        if not tables:
            self.constant += float(price)
        elif len(tables) == 1:
            self._add_costs(tables[0][0], price[tables[0][2]])
        else:
            self.add_pair(Pair((tables[0][0], tables[1][0]), (tables[0][2], tables[1][2]), price))

    def charge_base_usage(self, node: int) -> None:
        """Usage that a node holds under every strategy is taken off the room."""
        if node in self.untidy_loads:
            self.untidy_loads.discard(node)
            if self.loads[node]:
                load = disjoint(self.loads[node])
                base = load.usages.min(axis=1)
                for start, end, usage in zip(load.starts, load.ends, base, strict=True):
                    if usage:
                        self._take_room((start, end), usage)
                self.loads[node] = disjoint(replace(load, usages=load.usages - base[:, None]))

    def keep_times(self, keep: NDArray[np.bool_]) -> None:
        """Only the time points marked in ``keep`` remain; what is never live then holds no usage."""
        if keep.all():
            return
        index = np.concatenate([[0], np.cumsum(keep)])
        self.room = self.room[keep]
        for node, load in enumerate(self.loads):
            if load:
                self.loads[node] = disjoint(reindexed(load, index))
                if not self.loads[node]:
                    self.changed.add(node)
        for number, shared in self.shared.items():
            times = _moved(shared.times, index)
            usages = shared.usages if times[0] < times[1] else np.zeros_like(shared.usages)
            self.shared[number] = replace(shared, times=times, usages=usages)

    def form(self) -> tuple[NormalForm, IntArray]:
        """What remains as a normal form, and the nodes that its nodes were."""
        nodes = np.flatnonzero(~self.is_gone)
        number = {int(node): index for index, node in enumerate(nodes)}
        return NormalForm(
            costs=tuple(self.costs[v] for v in nodes),
            strategies=tuple(self.strategies[v] for v in nodes),
            pairs=tuple(
                replace(pair, nodes=(number[pair.nodes[0]], number[pair.nodes[1]]))
                for pair in self.pairs.values()
            ),
            shared=tuple(
                replace(s, producer=number[s.producer], consumers=tuple(number[c] for c in s.consumers))
                for s in self.shared.values()
            ),
            loads=tuple(self.loads[v] for v in nodes),
            room=self.room,
            constant=self.constant,
        ), nodes

    def _record(self, node: int, leaders: tuple[int, ...], strategy: IntArray) -> None:
        """Note a dependent node by strategy numbers, which later restrictions do not change."""
        table = np.full([self.counts[leader] for leader in leaders], -1, dtype=np.int64)
        table[np.ix_(*(self.strategies[leader] for leader in leaders))] = self.strategies[node][strategy]
        self.steps.append(Dependent(node, leaders, table))

    def _retire(self, node: int) -> None:
        self.is_gone[node] = True
        self.changed.discard(node)

    def _remap(self, old: int, new: int, index: IntArray) -> None:
        """Everything that named strategies of ``old`` names those of ``new``: s becomes index[s]."""
        self._move_load(old, new, index)
        for number in list(self.pairs_of[old]):
            other, own, others, costs = self.oriented(number, old)
            self._drop_pair(number)
            if other == new:
                self._add_costs(new, costs[own[index], others])
            else:
                self.add_pair(Pair((new, other), (own[index], others), costs))
        for number in list(self.shared_of[old]):
            shared = self._drop_shared(number)
            self.add_shared(_with_node(shared, old, new, index))
        self.changed.add(new)

    def _move_load(self, old: int, new: int, index: IntArray) -> None:
        load = self.loads[old]
        moved = Load(load.starts, load.ends, load.usages[:, index])
        if old == new:
            self.loads[new] = moved
            self.untidy_loads.add(new)
        else:
            self.loads[old] = Load(load.starts[:0], load.ends[:0], load.usages[:0])
            self._add_load(new, moved)

    def _add_load(self, node: int, load: Load) -> None:
        if load:
            self.loads[node] = joined(self.loads[node], load) if self.loads[node] else load
            self.untidy_loads.add(node)
            self.changed.add(node)

    def _tidy(self, pair: Pair) -> Pair:
        """Rows and columns start at 0 (their least price moves to the nodes); equal ones share a class.

        A class that forbids everything is forbidden itself, by an infinite cost of its strategies.
        """
        (i, j), (i_class, j_class) = pair.nodes, pair.classes
        i_used, i_class = _compacted(i_class, pair.costs.shape[0])
        j_used, j_class = _compacted(j_class, pair.costs.shape[1])
        costs, i_base = _from_zero(picked(pair.costs, i_used, j_used))
        transposed, j_base = _from_zero(costs.T)
        if i_base.any():
            self._add_costs(i, i_base[i_class])
        if j_base.any():
            self._add_costs(j, j_base[j_class])
        i_merged, i_first = row_classes(transposed.T)
        j_merged, j_first = row_classes(transposed)
        costs = picked(transposed.T, i_first, j_first)
        return Pair((i, j), (i_merged[i_class], j_merged[j_class]), costs)

    def _store(self, pair: Pair) -> None:
        self.changed.update(pair.nodes)
        if not pair.costs.any():
            return
        number = next(self._numbers)
        self.pairs[number] = pair
        for node in pair.nodes:
            self.pairs_of[node].add(number)

    def _drop_pair(self, number: int) -> None:
        pair = self.pairs.pop(number)
        for node in pair.nodes:
            self.pairs_of[node].discard(number)
        self.changed.update(pair.nodes)

    def _drop_shared(self, number: int) -> Shared:
        shared = self.shared.pop(number)
        for node in {shared.producer, *shared.consumers}:
            self.shared_of[node].discard(number)
        self.changed.update({shared.producer, *shared.consumers})
        return shared

    def _add_costs(self, node: int, costs: FloatArray) -> None:
        self.costs[node] = self.costs[node] + costs
        self.changed.add(node)

    def _take_room(self, times: tuple[int, int], usage: float) -> None:
        """Take usage that is always held off the room."""
        self.room[slice(*times)] -= usage
        if self.room[slice(*times)].min(initial=0.0) < 0:
            raise NothingFitsError

    def _settled(self, shared: Shared) -> Shared:
        """Versions that a consumer wants under every strategy are paid by the producer, once and for all."""
        costs, usages = shared.costs.copy(), shared.usages.copy()
        consumers, wanted = [], []
        for consumer, classes in zip(shared.consumers, shared.wanted, strict=True):
            version = int(classes[0])
            if (classes != version).any():
                consumers.append(consumer)
                wanted.append(classes)
                continue
            self._add_costs(shared.producer, costs[shared.produced, version])
            costs[:, version] = np.where(np.isfinite(costs[:, version]), 0.0, np.inf)
            if usages[version]:
                self._take_room(shared.times, float(usages[version]))
                usages[version] = 0.0
        return replace(shared, consumers=tuple(consumers), wanted=tuple(wanted), costs=costs, usages=usages)

    def _forbid_unusable(self, shared: Shared) -> None:
        """Forbid producing what some consumer can never take, and wanting what can never be made."""
        is_allowed = np.isfinite(shared.costs)
        for consumer, wanted in zip(shared.consumers, shared.wanted, strict=True):
            is_taken = np.logical_or.reduce(is_allowed[:, wanted], axis=1)[shared.produced]
            is_made = np.logical_or.reduce(is_allowed, axis=0)[wanted]
            if not is_taken.all():
                self._add_costs(shared.producer, np.where(is_taken, 0.0, np.inf))
            if not is_made.all():
                self._add_costs(consumer, np.where(is_made, 0.0, np.inf))

    def _add_single_use(self, shared: Shared) -> None:
        (consumer,), (wanted,) = shared.consumers, shared.wanted
        if shared.usages.any():
            start, end = shared.times
            self._add_load(consumer, Load(np.array([start]), np.array([end]), shared.usages[wanted][None]))
        if consumer == shared.producer:
            self._add_costs(consumer, shared.costs[shared.produced, wanted])
        else:
            nodes, classes = (shared.producer, consumer), (shared.produced, wanted)
            self.add_pair(Pair(nodes, classes, shared.costs))


def _compacted(classes: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """The classes that occur, and each strategy's place among them."""
    occurs = np.zeros(count, dtype=bool)
    occurs[classes] = True
    return occurs.nonzero()[0], (occurs.cumsum() - 1)[classes]


def _moved(times: tuple[int, int], index: IntArray) -> tuple[int, int]:
    return int(index[times[0]]), int(index[times[1]])


def _from_zero(costs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rows less their least entry, and that entry; rows that are all inf become 0."""
    base = costs.min(axis=1)
    if np.isfinite(base).all():
        return costs - base[:, None], base
    finite = np.where(np.isfinite(base), base, 0.0)
    return np.where(np.isfinite(base)[:, None], costs - finite[:, None], 0.0), base


def _sum(left: Pair, right: Pair) -> Pair:
    """Two pairs of the same nodes, in the same order, as one over the common refinement of their classes."""
    i_class, i_left, i_right = _refined(left.classes[0], right.classes[0])
    j_class, j_left, j_right = _refined(left.classes[1], right.classes[1])
    costs = picked(left.costs, i_left, j_left) + picked(right.costs, i_right, j_right)
    return Pair(left.nodes, (i_class, j_class), costs)


def _refined(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Classes that tell apart what either tells apart: (class, left class of each, right class of each)."""
    width = int(right.max(initial=0)) + 1
    both, classes = np.unique(left * width + right, return_inverse=True)
    return classes, both // width, both % width


def _with_node(shared: Shared, old: int, new: int, index: IntArray) -> Shared:
    """The shared tensor with one node's strategies renamed; equal uses by one node are one."""
    uses = [
        (new, wanted[index]) if consumer == old else (consumer, wanted)
        for consumer, wanted in zip(shared.consumers, shared.wanted, strict=True)
    ]
    distinct = {(consumer, wanted.tobytes()): (consumer, wanted) for consumer, wanted in uses}
    is_producer = shared.producer == old
    return replace(
        shared,
        producer=new if is_producer else shared.producer,
        produced=shared.produced[index] if is_producer else shared.produced,
        consumers=tuple(consumer for consumer, _ in distinct.values()),
        wanted=tuple(wanted for _, wanted in distinct.values()),
    )


def _compressed(shared: Shared) -> Shared:
    """Only classes that occur, and equal produced classes as one."""
    rows, produced = np.unique(shared.produced, return_inverse=True)
    merged, first = row_classes(shared.costs[rows])
    columns = np.unique(np.concatenate(shared.wanted)) if shared.wanted else np.zeros(0, dtype=np.int64)
    return replace(
        shared,
        produced=merged[produced],
        wanted=tuple(np.searchsorted(columns, wanted) for wanted in shared.wanted),
        costs=picked(shared.costs, rows[first], columns),
        usages=shared.usages[columns],
    )
