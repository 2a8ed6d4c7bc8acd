"""A choice that fits, quickly and without proof: one node at a time takes its best pick given the others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from solver.normal_form import NormalForm
from solver.pricing import fits, picks_cost, usage_by_time, versions
from solver.problem import FloatArray

__all__ = ["solve_by_local_search"]

PENALTY_GROWTH = 3.0
SWEEPS_PER_PENALTY = 5
SEED = 0


@dataclass(frozen=True, slots=True)
class _Penalties:
    """What breaking a rule costs while the search is under way."""

    forbidden: float
    """Cost in place of inf."""
    usage: float
    """Cost per unit above the room, at each time."""


def solve_by_local_search(
    form: NormalForm, *, time_limit_s: float, start: tuple[int, ...] | None = None
) -> tuple[int, ...] | None:
    """The best picks found that fit and are not forbidden, or None; the same for the same form and speed.

    ``start`` are picks to begin from, the cheapest of each node otherwise.
    """
    end_s = time.perf_counter() + time_limit_s
    random = np.random.default_rng(SEED)
    size = _typical_cost(form)
    unit = max(float(form.room.max(initial=0.0)), 1e-300)
    best, best_cost = None, np.inf
    picks = [int(np.argmin(costs)) for costs in form.costs] if start is None else list(start)
    while time.perf_counter() < end_s:
        penalty = size
        for _ in range(8):
            _descend(form, picks, _Penalties(10 * penalty, penalty / unit), random, end_s)
            cost = picks_cost(form, picks)
            if np.isfinite(cost) and fits(form, picks):
                if cost < best_cost:
                    best, best_cost = tuple(picks), cost
                break
            penalty *= PENALTY_GROWTH
        picks = _shaken(form, best or tuple(picks), random)
    return best


def _descend(
    form: NormalForm, picks: list[int], penalties: _Penalties, random: np.random.Generator, end_s: float
) -> None:
    """Sweep over the nodes in random order until nothing changes."""
    usage = usage_by_time(form, picks)
    touching = _touching(form)
    for _ in range(SWEEPS_PER_PENALTY):
        has_changed = False
        for node in random.permutation(len(picks)).tolist():
            if time.perf_counter() > end_s:
                return
            has_changed |= _improve(form, picks, usage, node, touching[node], penalties)
        if not has_changed:
            return


Touching = tuple[list[int], list[int]]
"""Numbers of the pairs and of the shared tensors that a node takes part in."""


def _touching(form: NormalForm) -> list[Touching]:
    touching: list[Touching] = [([], []) for _ in form.costs]
    for number, pair in enumerate(form.pairs):
        for node in pair.nodes:
            touching[node][0].append(number)
    for number, shared in enumerate(form.shared):
        for node in {shared.producer, *shared.consumers}:
            touching[node][1].append(number)
    return touching


def _improve(
    form: NormalForm,
    picks: list[int],
    usage: FloatArray,
    node: int,
    touching: Touching,
    penalties: _Penalties,
) -> bool:
    """Give a node its best pick; ``usage`` follows. True when the pick changed."""
    old = picks[node]
    held = np.stack([_held(form, picks, node, pick, touching) for pick in range(form.costs[node].size)])
    over = np.maximum(usage - held[old] + held - form.room, 0.0).sum(axis=1)
    total = _conditional_costs(form, picks, node, touching, penalties) + penalties.usage * over
    new = int(np.argmin(total))
    if total[new] >= total[old]:
        return False
    picks[node] = new
    usage += held[new] - held[old]
    return True


def _conditional_costs(
    form: NormalForm, picks: list[int], node: int, touching: Touching, penalties: _Penalties
) -> FloatArray:
    """Cost of each pick of a node given all others."""
    total = form.costs[node].copy()
    for number in touching[0]:
        pair = form.pairs[number]
        end = pair.nodes.index(node)
        other = pair.classes[1 - end][picks[pair.nodes[1 - end]]]
        row = pair.costs[:, other] if end == 0 else pair.costs[other]
        total += np.minimum(row, penalties.forbidden)[pair.classes[end]]
    for number in touching[1]:
        shared = form.shared[number]
        for pick in range(total.size):
            trial = {**{v: picks[v] for v in (shared.producer, *shared.consumers)}, node: pick}
            made = shared.produced[trial[shared.producer]]
            wanted = sorted({int(w[trial[c]]) for c, w in zip(shared.consumers, shared.wanted, strict=True)})
            total[pick] += np.minimum(shared.costs[made, wanted], penalties.forbidden).sum()
    return total


def _held(form: NormalForm, picks: list[int], node: int, pick: int, touching: Touching) -> FloatArray:
    """(time points,) usage that depends on a node, under one of its picks."""
    held = np.zeros(form.room.size)
    load = form.loads[node]
    for start, end, usages in zip(load.starts, load.ends, load.usages, strict=True):
        held[start:end] += usages[pick]
    trial = [*picks[:node], pick, *picks[node + 1 :]] if touching[1] else []
    for number in touching[1]:
        shared = form.shared[number]
        held[slice(*shared.times)] += shared.usages[versions(shared, trial)].sum()
    return held


def _shaken(form: NormalForm, picks: tuple[int, ...], random: np.random.Generator) -> list[int]:
    """Some picks replaced at random."""
    is_shaken = random.random(len(picks)) < 0.1
    return [
        int(random.integers(costs.size)) if shaken else pick
        for costs, pick, shaken in zip(form.costs, picks, is_shaken, strict=True)
    ]


def _typical_cost(form: NormalForm) -> float:
    tables = [*form.costs, *(p.costs for p in form.pairs), *(s.costs for s in form.shared)]
    return max((float(np.ptp(t[np.isfinite(t)])) for t in tables if np.isfinite(t).any()), default=0.0) or 1.0
