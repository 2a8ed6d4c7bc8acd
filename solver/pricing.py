"""What picks for a normal form cost and hold: the sums that every search over picks needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solver.normal_form import NormalForm, Shared
from solver.problem import FloatArray

__all__ = ["below", "fits", "least_sum", "picks_cost", "priced", "usage_by_time", "versions"]

COST_ROUNDING = 1e-9
"""What sums of costs may be off by, as a share of them."""


def picks_cost(form: NormalForm, picks: Sequence[int]) -> float:
    """Cost of one pick per node; inf when forbidden."""
    total = form.constant + sum(float(c[pick]) for c, pick in zip(form.costs, picks, strict=True))
    for pair in form.pairs:
        i, j = (classes[picks[v]] for v, classes in zip(pair.nodes, pair.classes, strict=True))
        total += float(pair.costs[i, j])
    for shared in form.shared:
        total += float(shared.costs[shared.produced[picks[shared.producer]], versions(shared, picks)].sum())
    return total


def least_sum(form: NormalForm) -> float:
    """A bound that needs no search: every table at its least."""
    tables = [*form.costs, *(pair.costs for pair in form.pairs)]
    return form.constant + sum(float(table.min()) for table in tables)


def below(form: NormalForm, cutoff: float) -> NormalForm:
    """The form without what alone makes every choice dearer than ``cutoff``: such entries are forbidden.

    ``choice`` of the result gives picks of ``form``.
    """
    least = least_sum(form)
    spare = math.inf
    if math.isfinite(least):
        spare = cutoff - least + COST_ROUNDING * (abs(cutoff) + abs(least))

    def kept(table: FloatArray) -> FloatArray:
        return np.where(table > table.min() + spare, np.inf, table)

    return replace(
        form,
        strategies=tuple(np.arange(costs.size) for costs in form.costs),
        costs=tuple(kept(costs) for costs in form.costs),
        pairs=tuple(replace(pair, costs=kept(pair.costs)) for pair in form.pairs),
    )


def usage_by_time(form: NormalForm, picks: Sequence[int]) -> FloatArray:
    """(time points,) usage of one pick per node."""
    change = np.zeros(form.room.size + 1)
    for load, pick in zip(form.loads, picks, strict=True):
        np.add.at(change, load.starts, load.usages[:, pick])
        np.subtract.at(change, load.ends, load.usages[:, pick])
    for shared in form.shared:
        held = shared.usages[versions(shared, picks)].sum()
        change[shared.times[0]] += held
        change[shared.times[1]] -= held
    return np.cumsum(change)[:-1]


def fits(form: NormalForm, picks: Sequence[int]) -> bool:
    """True when the usage of the picks is within the room at every time."""
    return bool((usage_by_time(form, picks) <= form.room).all())


def priced(form: NormalForm, prices: FloatArray) -> NormalForm:
    """The form with usage paid for, at a price per unit for each time point, in place of its limit."""
    upto = np.concatenate([[0.0], np.cumsum(prices)])
    costs = tuple(
        own + (upto[load.ends] - upto[load.starts]) @ load.usages
        for own, load in zip(form.costs, form.loads, strict=True)
    )
    shared = tuple(
        replace(s, costs=s.costs + s.usages * (upto[s.times[1]] - upto[s.times[0]])) for s in form.shared
    )
    return replace(form, costs=costs, shared=shared)


def versions(shared: Shared, picks: Sequence[int]) -> list[int]:
    """The distinct versions that the consumers' picks want."""
    return sorted({int(w[picks[c]]) for c, w in zip(shared.consumers, shared.wanted, strict=True)})
