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

from solver.elimination import Elimination, eliminate
from solver.highs import new_highs
from solver.normal_form import NormalForm
from solver.pricing import picks_cost, priced, usage_by_time
from solver.problem import FloatArray
from solver.solution import Solution

__all__ = ["Priced", "solve_by_prices"]

MAX_ROUNDS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """What prices on usage tell about a form."""

    solution: Solution
    """The best picks that fit, and the best bound."""
    prices: FloatArray
    """(time points,) price per unit of usage that gave the bound."""
    elimination: Elimination
    """The form at these prices, solved."""
    found: tuple[tuple[int, ...], ...]
    """All picks on the way, most of which do not fit."""


def solve_by_prices(form: NormalForm, *, time_limit_s: float, gap: float) -> Priced | None:
    """Bounds for a form whose graph is narrow; None when elimination would need tables that are too large."""
    end_s = time.perf_counter() + time_limit_s
    picks, cost, bound, best = None, math.inf, -math.inf, None
    seen: dict[tuple[int, ...], float] = {}
    master, prices = None, np.zeros(form.room.size)
    while len(seen) < MAX_ROUNDS:
        found = eliminate(priced(form, prices), time_limit_s=end_s - time.perf_counter())
        if found is None:
            break
        if found.cost - float(prices @ form.room) > bound or best is None:
            bound = found.cost - float(prices @ form.room)
            best = (prices, found)
        if not math.isfinite(found.cost):
            break
        latest = found.picks()
        own, usage = picks_cost(form, latest), usage_by_time(form, latest)
        if own < cost and (usage <= form.room).all():
            picks, cost = latest, own
        if latest in seen or (picks is not None and cost - bound <= gap * abs(cost)):
            break
        seen[latest] = own
        master = master or _new_master(form)
        prices = _next_prices(master, own, usage)
    if best is None:
        return None
    return Priced(Solution.of(picks, cost, bound, gap=gap, method="elimination"), *best, tuple(seen))


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
