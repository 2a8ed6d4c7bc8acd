"""A lower bound for wide graphs, and choices near it: messages between nodes, and prices on usage.

Sequential tree-reweighted message passing (Kolmogorov, 2006) moves costs between pairs and nodes such that no
choice changes its cost; the sum of the least entries of all tables is a bound, and grows. Usage is paid for
at a price per time point instead of limited, which keeps the bound a bound; a subgradient step changes the
prices after each sweep. Shared tensors count as free.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from solver.message_tables import MessageTables
from solver.normal_form import NormalForm
from solver.pricing import COST_ROUNDING, picks_cost, usage_by_time
from solver.problem import FloatArray

__all__ = ["Messages", "raised_bound"]

FIRST_SWEEPS = 4
"""Sweeps without prices, so that the first prices answer to choices that make sense."""

LAST_SWEEPS = 2
"""Sweeps at the best prices, at the end."""

STEP, STEP_DECAY = 0.1, 0.9
"""Share of a full step that prices take, and by how much it shrinks after a setback."""

SETBACKS = 5
"""Sweeps below the best bound after which prices go back to the best ones."""

PATIENCE = 40
"""Sweeps in which the bound must have gained something."""

LEAST_GAIN = 1e-4
"""Share of the bound that counts as something."""

KEPT = 3
"""How many of the latest choices are returned."""


@dataclass(frozen=True, slots=True, eq=False)
class Messages:
    """The costs of a form after moving them about, and what they tell."""

    bound: float
    """No choice that fits costs less."""
    level: float
    """The bound that the tables below amount to."""
    costs: tuple[FloatArray, ...]
    """For each node, what is left in its own costs, with usage paid."""
    tables: tuple[FloatArray, ...]
    """For each pair, what is left in its table."""
    found: tuple[tuple[int, ...], ...]
    """Picks read off the messages: the latest, few of which fit, and the cheapest that do."""

    def moved(self, form: NormalForm) -> NormalForm:
        """The same form with costs where the messages have moved them, and usage paid."""
        pairs = zip(form.pairs, self.tables, strict=True)
        return replace(form, costs=self.costs, pairs=tuple(replace(pair, costs=t) for pair, t in pairs))

    def below(self, form: NormalForm, cutoff: float) -> NormalForm:
        """The form without what only choices dearer than ``cutoff`` contain: such entries are forbidden.

        ``choice`` of the result gives picks of ``form``.
        """
        spare = cutoff - self.level + COST_ROUNDING * (abs(cutoff) + abs(self.level))
        return replace(
            form,
            strategies=tuple(np.arange(own.size) for own in form.costs),
            costs=tuple(_up_to(own, c, spare) for own, c in zip(form.costs, self.costs, strict=True)),
            pairs=tuple(
                replace(pair, costs=_up_to(pair.costs, table, spare))
                for pair, table in zip(form.pairs, self.tables, strict=True)
            ),
        )


def raised_bound(form: NormalForm, *, end_s: float, cost: float = math.inf, gap: float = 0.0) -> Messages:
    """Messages until ``end_s`` on the ``perf_counter`` clock, or until the bound grows no more.

    Nor need it come nearer than the relative ``gap`` to ``cost``, that of some choice that fits.
    """
    ascent = _Ascent(form, cost)
    while ascent.is_worthwhile(gap):
        ascent.sweep()
        if time.perf_counter() > end_s:
            break
        ascent.change_prices()
    return ascent.messages()


class _Ascent:
    """The bound on its way up."""

    def __init__(self, form: NormalForm, cost: float) -> None:
        self.form = form
        self.cost = cost
        self.tables = MessageTables(form)
        self.bound, self.prices = -math.inf, self.tables.prices
        self.found: dict[tuple[int, ...], None] = {}
        self.fitting: tuple[int, ...] | None = None
        self.usage = np.zeros(form.room.size)
        self.sweeps = self.last_gain = self.setbacks = 0
        self.step = STEP

    def is_worthwhile(self, gap: float) -> bool:
        """True while the bound grows and is not near the best cost known."""
        is_near = self.cost < math.inf and self.cost - self.bound <= gap * abs(self.cost)
        return self.sweeps - self.last_gain <= PATIENCE and not is_near

    def sweep(self) -> None:
        """There and back, and note what came of it."""
        self.tables.sweep(is_forward=True)
        picks = tuple(self.tables.sweep(is_forward=False))
        self.sweeps += 1
        self.usage = usage_by_time(self.form, picks)
        self.found.pop(picks, None)
        self.found[picks] = None
        cost = picks_cost(self.form, picks)
        if cost < self.cost and (self.usage <= self.form.room).all():
            self.fitting, self.cost = picks, cost
        bound = self.tables.bound()
        if bound <= self.bound:
            self.step *= STEP_DECAY
            self.setbacks += 1
            return
        if bound - self.bound > LEAST_GAIN * abs(bound):
            self.last_gain = self.sweeps
        self.setbacks = 0
        self.bound, self.prices = bound, self.tables.prices

    def change_prices(self) -> None:
        """A step along what exceeds the room, as long as would lift the bound to the best cost known."""
        if self.sweeps < FIRST_SWEEPS or not self.form.room.size:
            return
        if self.setbacks >= SETBACKS:
            self.setbacks = 0
            self.tables.set_prices(self.prices)
            return
        prices = self.tables.prices
        over = self.usage - self.form.room
        over = np.where((prices > 0) | (over > 0), over, 0.0)
        if not over.any():
            return
        bound = self.tables.bound()
        distance = min(self.cost - bound, abs(bound) or math.inf)
        length = self.step * (distance if distance < math.inf else 1.0) / float(over @ over)
        self.tables.set_prices(np.maximum(prices + length * over, 0.0))

    def messages(self) -> Messages:
        """What the best prices lead to."""
        self.tables.set_prices(self.prices)
        for _ in range(LAST_SWEEPS):
            self.tables.sweep(is_forward=True)
            self.tables.sweep(is_forward=False)
        level = self.tables.bound()
        kept = list(self.found)[-KEPT:]
        return Messages(
            bound=max(self.bound, level),
            level=level,
            costs=tuple(self.tables.costs),
            tables=tuple(self.tables.tables),
            found=tuple(kept if self.fitting is None else [*kept, self.fitting]),
        )


def _up_to(costs: FloatArray, left: FloatArray, spare: float) -> FloatArray:
    return np.where(left > left.min() + spare, np.inf, costs)
