"""A price on usage instead of a limit: a lower bound, and choices that fit (Dantzig and Wolfe, 1960).

With prices the problem has no limit left and elimination solves it exactly. A small linear program mixes the
choices found so far such that their average fits; its duals are the next prices. The best prices bound the
cost from below; any of the choices that fits is a candidate.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from solver.elimination import solve_by_elimination
from solver.highs import new_highs
from solver.normal_form import NormalForm
from solver.pricing import picks_cost, priced, usage_by_time
from solver.problem import FloatArray

__all__ = ["Bracket", "bracket_by_prices"]

MAX_ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Bracket:
    """The optimum lies between the bound and the cost of the picks."""

    picks: tuple[int, ...] | None
    cost: float
    lower_bound: float

    def is_proven(self, gap: float) -> bool:
        """True when the picks are within the relative gap of the bound."""
        return self.picks is not None and self.cost - self.lower_bound <= gap * abs(self.cost)


def bracket_by_prices(form: NormalForm, *, time_limit_s: float, gap: float) -> Bracket | None:
    """Bounds for a form whose graph is narrow; None when elimination would need tables that are too large."""
    end_s = time.perf_counter() + time_limit_s
    best = Bracket(None, math.inf, -math.inf)
    master, prices = None, np.zeros(form.room.size)
    seen: set[tuple[int, ...]] = set()
    for _ in range(MAX_ROUNDS):
        found = solve_by_elimination(priced(form, prices), time_limit_s=end_s - time.perf_counter())
        if found is None:
            return best if master is not None else None
        if found.choice is None:
            return Bracket(None, math.inf, math.inf)
        cost, usage = picks_cost(form, found.choice), usage_by_time(form, found.choice)
        bound = max(best.lower_bound, found.cost - float(prices @ form.room))
        is_better = cost < best.cost and bool((usage <= form.room).all())
        best = Bracket(found.choice, cost, bound) if is_better else Bracket(best.picks, best.cost, bound)
        if found.choice in seen or best.is_proven(gap):
            break
        seen.add(found.choice)
        master = master or _new_master(form)
        prices = _next_prices(master, cost, usage)
    return best


@dataclass(frozen=True, slots=True)
class _Master:
    """The linear program over choices: rows are time points (in units of the room) and the sum of shares."""

    highs: Any
    room: FloatArray
    scale: float


def _new_master(form: NormalForm) -> _Master:
    """One column that never fits the cost: what exceeds the room is bought at a high price per unit."""
    spread = sum(float(np.abs(costs).max()) for costs in form.costs)
    tables = [pair.costs for pair in form.pairs] + [shared.costs for shared in form.shared]
    spread += sum(float(np.abs(t[np.isfinite(t)]).max(initial=0.0)) for t in tables)
    room = np.maximum(form.room, form.room.max() * 1e-6) if form.room.max() > 0 else np.ones_like(form.room)
    highs = new_highs(time_limit_s=math.inf, gap=0.0)
    for limit in form.room / room:
        highs.addRow(-math.inf, float(limit), 0, [], [])
    highs.addRow(1.0, 1.0, 0, [], [])
    rows = np.arange(room.size, dtype=np.int32)
    highs.addCol(1e4, 0.0, math.inf, rows.size, rows, -np.ones(rows.size))
    return _Master(highs, room, 1.0 / spread if spread > 0 else 1.0)


def _next_prices(master: _Master, cost: float, usage: FloatArray) -> FloatArray:
    """Prices per unit of usage after a choice has been added."""
    rows = np.arange(usage.size + 1, dtype=np.int32)
    entries = np.append(usage / master.room, 1.0)
    master.highs.addCol(cost * master.scale, 0.0, math.inf, rows.size, rows, entries)
    master.highs.run()
    duals = np.array(master.highs.getSolution().row_dual)[:-1]
    prices: FloatArray = np.maximum(-duals, 0.0) / master.scale / master.room
    return prices
