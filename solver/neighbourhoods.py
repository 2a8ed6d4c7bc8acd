"""Which nodes to decide anew while all others stay as they are, and the smaller problem that this leaves.

A region is grown through the graph or gathered around a moment; nodes are then taken out of it again until
elimination can solve what is left. Regions are drawn at random, so what is taken out once is free another time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solver.loads import Load
from solver.normal_form import NormalForm, Pair, Shared
from solver.pricing import versions
from solver.problem import FloatArray, IntArray

__all__ = ["Surroundings", "around", "during", "freed", "narrowed", "surroundings"]


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What each node of a form takes part in."""

    pairs_of: tuple[tuple[int, ...], ...]
    """Numbers of the pairs of each node."""
    shared_of: tuple[tuple[int, ...], ...]
    """Numbers of the shared tensors of each node."""
    neighbours: tuple[tuple[int, ...], ...]
    """Nodes that meet each node in a pair or a shared tensor."""
    holders: IntArray
    """(ranges,) the node of each range of time points of all loads."""
    starts: IntArray
    """(ranges,) first time point of each range."""
    ends: IntArray
    """(ranges,) one past the last."""


def surroundings(form: NormalForm) -> Surroundings:
    """Collected once for all neighbourhoods of a form."""
    pairs_of: list[list[int]] = [[] for _ in form.costs]
    shared_of: list[list[int]] = [[] for _ in form.costs]
    met: list[set[int]] = [set() for _ in form.costs]
    for number, pair in enumerate(form.pairs):
        for node in pair.nodes:
            pairs_of[node].append(number)
            met[node].update(pair.nodes)
    for number, shared in enumerate(form.shared):
        nodes = {shared.producer, *shared.consumers}
        for node in nodes:
            shared_of[node].append(number)
            met[node].update(nodes)
    return Surroundings(
        tuple(map(tuple, pairs_of)),
        tuple(map(tuple, shared_of)),
        tuple(tuple(sorted(others - {node})) for node, others in enumerate(met)),
        np.repeat(np.arange(len(form.loads)), [load.starts.size for load in form.loads]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(load.starts for load in form.loads)]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(load.ends for load in form.loads)]),
    )


def around(where: Surroundings, centre: int, size: int, random: np.random.Generator) -> list[int]:
    """Up to ``size`` connected nodes: the region grows from one of its nodes at a time, drawn at random."""
    region, growing = {centre: None}, [centre]
    while growing and len(region) < size:
        place = int(random.integers(len(growing)))
        fresh = [v for v in where.neighbours[growing[place]] if v not in region]
        if fresh:
            node = fresh[int(random.integers(len(fresh)))]
            region[node] = None
            growing.append(node)
        else:
            growing[place] = growing[-1]
            growing.pop()
    return list(region)


def during(where: Surroundings, moment: int, size: int, random: np.random.Generator) -> list[int]:
    """The ``size`` nodes that hold usage nearest to a time point; of equally near ones any."""
    away = np.maximum(np.maximum(where.starts - moment, moment + 1 - where.ends), 0)
    order = np.lexsort((random.random(away.size), away))
    holders = where.holders[order]
    return list(dict.fromkeys(holders.tolist()))[:size]


def narrowed(
    form: NormalForm,
    where: Surroundings,
    region: Iterable[int],
    max_entries: int,
    random: np.random.Generator,
) -> list[int]:
    """A part of a region that elimination solves with tables of at most ``max_entries``.

    Nodes are eliminated in thought, smallest table first. Where the smallest is too large a node with many
    neighbours, drawn at random, is left out.
    """
    meets = {v: set(where.neighbours[v]) for v in region}
    for others in meets.values():
        others.intersection_update(meets)
    digits = {v: math.log(form.costs[v].size) for v in meets}
    drawn = dict(zip(meets, (0.3 + random.random(len(meets))).tolist(), strict=True))
    sizes = {v: sum(digits[w] for w in others) for v, others in meets.items()}
    queue = [(size, v) for v, size in sizes.items()]
    heapq.heapify(queue)
    kept: list[int] = []
    while queue:
        size, node = heapq.heappop(queue)
        if node not in meets or size != sizes[node]:
            continue
        is_narrow = size <= math.log(max_entries)
        if is_narrow:
            kept.append(node)
        else:
            heapq.heappush(queue, (size, node))
            node = max(meets, key=lambda v: (len(meets[v]) * digits[v] * drawn[v], v))
        others = meets.pop(node)
        for other in others:
            meets[other].discard(node)
            if is_narrow:
                meets[other] |= others - {other}
            sizes[other] = sum(digits[w] for w in meets[other])
            heapq.heappush(queue, (sizes[other], other))
    return sorted(kept)


def freed(
    form: NormalForm, where: Surroundings, picks: Sequence[int], usage: FloatArray, free: Sequence[int]
) -> NormalForm:
    """The problem of the free nodes alone, in their order, as long as all others keep their picks.

    What others cost and hold is in the costs and off the room; ``usage`` is that of all picks by time. Nodes
    that share a tensor with a free one follow after the free ones, with their one pick.
    """
    shared = [form.shared[n] for n in sorted({n for v in free for n in where.shared_of[v]})]
    bound = sorted({v for s in shared for v in (s.producer, *s.consumers)} - set(free))
    nodes = [*free, *bound]
    number = {v: index for index, v in enumerate(nodes)}
    own = [*(np.arange(form.costs[v].size) for v in free), *(np.array([picks[v]]) for v in bound)]
    costs = [*(form.costs[v].copy() for v in free), *(np.zeros(1) for _ in bound)]
    pairs = _inner_pairs(form, where, picks, free, number, costs)
    room = form.room - usage
    for node in free:
        load = form.loads[node]
        for start, end, held in zip(load.starts, load.ends, load.usages[:, picks[node]], strict=True):
            room[start:end] += held
    for tensor in shared:
        room[slice(*tensor.times)] += tensor.usages[versions(tensor, picks)].sum()
    loads = [*(form.loads[v] for v in free), *(_no_load(form, v) for v in bound)]
    return NormalForm(
        costs=tuple(costs),
        strategies=tuple(np.arange(c.size) for c in costs),
        pairs=tuple(pairs),
        shared=tuple(_renumbered(tensor, number, own) for tensor in shared),
        loads=tuple(loads),
        room=np.maximum(room, 0.0),
    )


def _inner_pairs(
    form: NormalForm,
    where: Surroundings,
    picks: Sequence[int],
    free: Sequence[int],
    number: dict[int, int],
    costs: list[FloatArray],
) -> list[Pair]:
    """Pairs of two free nodes; the prices of all other pairs of a free node are added to its ``costs``."""
    inner, is_free = [], set(free)
    for table in sorted({n for v in free for n in where.pairs_of[v]}):
        pair = form.pairs[table]
        (i, j), (i_class, j_class) = pair.nodes, pair.classes
        if i in is_free and j in is_free:
            inner.append(Pair((number[i], number[j]), pair.classes, pair.costs))
        elif i in is_free:
            costs[number[i]] += pair.costs[i_class, j_class[picks[j]]]
        else:
            costs[number[j]] += pair.costs[i_class[picks[i]], j_class]
    return inner


def _renumbered(shared: Shared, number: dict[int, int], own: list[IntArray]) -> Shared:
    """The shared tensor between the nodes of the smaller problem."""
    producer = number[shared.producer]
    consumers = tuple(number[c] for c in shared.consumers)
    return replace(
        shared,
        producer=producer,
        produced=shared.produced[own[producer]],
        consumers=consumers,
        wanted=tuple(w[own[c]] for c, w in zip(consumers, shared.wanted, strict=True)),
    )


def _no_load(form: NormalForm, node: int) -> Load:
    load = form.loads[node]
    return replace(load, starts=load.starts[:0], ends=load.ends[:0], usages=load.usages[:0, :1])
