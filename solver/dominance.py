"""Which strategies of a node can be dropped because another is never worse (Goldstein's criterion, 1994).

Strategy b replaces a when its own cost plus, for every table, the most that it can add over a is at most a's
cost, and it holds no more usage. Summing worst cases over tables makes it stronger than row by row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solver.normal_form import Shared, picked
from solver.problem import FloatArray
from solver.working_form import WorkingForm

__all__ = ["MAX_ENTRIES", "undominated"]

MAX_ENTRIES = 4_000_000
"""Larger comparisons (classes² × classes) are skipped: they would cost more than they save."""


def undominated(work: WorkingForm, node: int) -> NDArray[np.bool_]:
    """Marks the strategies that must stay; of equal ones the first."""
    costs = work.costs[node]
    count = costs.size
    if count == 1:
        return np.ones(1, dtype=bool)
    worse = costs[:, None] - costs[None, :]  # worse[b, a]: the most by which b can be dearer than a
    for b, usages in enumerate(work.loads[node].usages.T):
        worse[b, (usages[:, None] > work.loads[node].usages).any(axis=0)] = np.inf
    for number in sorted(work.pairs_of[node]):
        _, own, _, table = work.oriented(number, node)
        worse += picked(_largest_increase(table), own, own)
    for number in sorted(work.shared_of[node]):
        worse += _shared_increase(work.shared[number], node)
    return _kept(worse)


def _kept(worse: FloatArray) -> NDArray[np.bool_]:
    """Drop strategies one at a time, each for the sake of one that is still there."""
    replaces = worse <= 0
    np.fill_diagonal(replaces, False)
    kept = np.ones(worse.shape[0], dtype=bool)
    for a in np.flatnonzero(replaces.any(axis=0))[::-1]:
        kept[a] = not replaces[kept, a].any()
    return kept


def _largest_increase(table: FloatArray) -> FloatArray:
    """(rows, rows): the most that row b exceeds row a where a is allowed."""
    rows, columns = table.shape
    if rows * rows * columns > MAX_ENTRIES:
        return np.where(np.eye(rows, dtype=bool), 0.0, np.inf)
    with np.errstate(invalid="ignore"):  # inf − inf: a is forbidden there, so b adds nothing
        increase = np.fmax.reduce(table[:, None, :] - table[None, :, :], axis=2)
    return np.where(np.isnan(increase), -np.inf, increase)


def _shared_increase(shared: Shared, node: int) -> FloatArray:
    """(strategies, strategies): the most that b can add over a to what a shared tensor costs."""
    roles = [w for c, w in zip(shared.consumers, shared.wanted, strict=True) if c == node]
    if shared.producer == node and not roles:
        return picked(_producer_increase(shared), shared.produced, shared.produced)
    if shared.producer != node and len(roles) == 1:
        return picked(_consumer_increase(shared), roles[0], roles[0])
    if shared.producer == node:
        roles.append(shared.produced)
    is_same = np.all([role[:, None] == role[None, :] for role in roles], axis=0)
    return np.where(is_same, 0.0, np.inf)


def _producer_increase(shared: Shared) -> FloatArray:
    """(P, P): versions are distinct, so at most one increase per consumer adds up."""
    rows, columns = shared.costs.shape
    if rows * rows * columns > MAX_ENTRIES:
        return np.where(np.eye(rows, dtype=bool), 0.0, np.inf)
    with np.errstate(invalid="ignore"):
        increase = shared.costs[:, None, :] - shared.costs[None, :, :]
    increase = -np.sort(-np.where(np.isnan(increase), -np.inf, increase), axis=2)
    most = np.maximum(increase[:, :, : len(shared.consumers)], 0.0).sum(axis=2)
    return np.where(increase[:, :, 0] < 0, increase[:, :, 0], most)


def _consumer_increase(shared: Shared) -> FloatArray:
    """(W, W): another version may have to be made, and the old one may still be wanted by others."""
    classes = shared.costs.shape[1]
    dearest = np.where(shared.usages > 0, np.inf, shared.costs.max(axis=0))
    return np.where(np.eye(classes, dtype=bool), 0.0, np.broadcast_to(dearest[:, None], (classes, classes)))
