"""Makes a choice cheaper: part of it is decided anew while the rest stays (large neighbourhood search).

Each step frees a neighbourhood that elimination can solve, puts prices on the usage that the rest leaves to it
until the choice fits, and keeps what came out when it is not dearer. Neighbourhoods grow while steps are quick.
The same seed and speed give the same choice (Shaw, 1998, for the idea).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from solver.mixing import mixed
from solver.neighbourhoods import around, during, freed, narrowed, surroundings
from solver.normal_form import NormalForm
from solver.presolve import presolve
from solver.pricing import below, picks_cost, usage_by_time
from solver.problem import FloatArray
from solver.usage_prices import solve_by_prices

__all__ = ["improved"]

SEED = 0

STEP_SHARE = 0.01
"""Share of the time given that one step should take."""

FIRST_NODES, FIRST_ENTRIES = 50, 1000
"""Size of the first neighbourhood, and of the largest table to eliminate it."""

MAX_ENTRIES = 1_000_000

GROWTH = 1.05
"""By how much neighbourhoods grow after a quick step."""

GAP = 1e-3
"""Relative gap to which a neighbourhood is solved."""


def improved(
    form: NormalForm,
    picks: tuple[int, ...],
    *,
    guide: NormalForm,
    end_s: float,
    stall_s: float = math.inf,
) -> tuple[int, ...]:
    """Picks that cost no more than ``picks``, which fit and are not forbidden.

    Ends at ``end_s`` on the ``perf_counter`` clock, or when for ``stall_s`` nothing has become cheaper. The
    ``guide`` is a form with the same choices: where picks exceed the least of its tables they may be improved.
    """
    search = _Search(form, guide, picks)
    step_s = STEP_SHARE * (end_s - time.perf_counter())
    effort, last_gain_s = 1.0, time.perf_counter()
    while (start_s := time.perf_counter()) < min(end_s, last_gain_s + stall_s):
        if search.step(effort, end_s=min(end_s, start_s + 5 * step_s)):
            last_gain_s = time.perf_counter()
        is_quick = time.perf_counter() - start_s < step_s
        effort = max(1.0, effort * GROWTH if is_quick else effort / GROWTH**2)
    return tuple(search.picks)


class _Search:
    """The picks so far, with what each step needs to know about them."""

    def __init__(self, form: NormalForm, guide: NormalForm, picks: Sequence[int]) -> None:
        self.form = form
        self.guide = guide
        self.picks = list(picks)
        self.usage = usage_by_time(form, picks)
        self.where = surroundings(form)
        self.random = np.random.default_rng(SEED)

    def step(self, effort: float, *, end_s: float) -> bool:
        """Decide one neighbourhood anew; True when that made the picks cheaper."""
        region = self._region(math.ceil(FIRST_NODES * effort))
        max_entries = min(MAX_ENTRIES, int(FIRST_ENTRIES * effort**2))
        free = narrowed(self.form, self.where, region, max_entries, self.random)
        part = freed(self.form, self.where, self.picks, self.usage, free)
        others = len(part.costs) - len(free)
        now = picks_cost(part, [*(self.picks[node] for node in free), *(0 for _ in range(others))])
        found = _solved(below(part, now), end_s=end_s)
        if found is None:
            return False
        cost = picks_cost(part, found)
        return cost <= now and self._accept(free, found) and cost < now

    def _accept(self, nodes: list[int], picks: tuple[int, ...]) -> bool:
        """Take over the picks of some nodes (the first of ``picks``), if they fit after rounding too."""
        trial = self.picks.copy()
        for node, pick in zip(nodes, picks, strict=False):
            trial[node] = pick
        usage = usage_by_time(self.form, trial)
        if (usage > self.form.room).any():
            return False
        self.picks, self.usage = trial, usage
        return True

    def _region(self, size: int) -> list[int]:
        """Around a node, as often any as one whose tables are dear now, or around a moment."""
        kind = int(self.random.integers(3))
        if kind == 0 and self.where.starts.size:
            return during(self.where, int(self.random.integers(self.form.room.size)), size, self.random)
        weights = self._dearness() if kind == 1 else None
        centre = int(self.random.choice(len(self.picks), p=weights))
        return around(self.where, centre, size, self.random)

    def _dearness(self) -> FloatArray | None:
        """Share of each node in what the picks cost more than the least of all tables."""
        own = zip(self.guide.costs, self.picks, strict=True)
        excess = np.array([costs[pick] - costs.min() for costs, pick in own])
        for pair in self.guide.pairs:
            i, j = pair.nodes
            row, column = pair.classes[0][self.picks[i]], pair.classes[1][self.picks[j]]
            excess[[i, j]] += pair.costs[row, column] - pair.costs.min()
        total = float(excess.sum())
        return excess / total if total > 0 else None


def _solved(form: NormalForm, *, end_s: float) -> tuple[int, ...] | None:
    """The best picks that prices on usage lead to, or None."""
    reduced = presolve(form)
    if reduced is None:
        return None
    if not reduced.form.costs:
        return reduced.choice(())
    priced = solve_by_prices(reduced.form, time_limit_s=end_s - time.perf_counter(), gap=GAP)
    if priced is None:
        return None
    best = priced.solution
    if reduced.form.room.size and len(priced.found) > 1 and best.gap > GAP:
        mix = mixed(reduced.form, priced.found, end_s=end_s, gap=GAP)
        best = mix if mix.cost < best.cost else best
    return None if best.choice is None else reduced.choice(best.choice)
