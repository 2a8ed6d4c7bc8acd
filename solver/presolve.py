"""The smallest problem with the same optimum: what is forbidden, dominated or decided by others is gone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.dominance import undominated
from solver.loads import rises_and_drops
from solver.normal_form import NormalForm
from solver.problem import FloatArray, IntArray
from solver.working_form import Dependent, NothingFitsError, WorkingForm

__all__ = ["Presolved", "presolve"]


@dataclass(frozen=True, slots=True, eq=False)
class Presolved:
    """What is left to decide, and how a decision becomes a choice for the whole problem."""

    form: NormalForm
    nodes: IntArray
    """The problem's number of each node of the form."""
    steps: tuple[Dependent, ...]
    node_count: int

    def choice(self, picks: tuple[int, ...]) -> tuple[int, ...]:
        """The problem's strategy of every node, from one pick per node of the form."""
        choice = np.full(self.node_count, -1, dtype=np.int64)
        choice[self.nodes] = self.form.choice(picks)
        for step in reversed(self.steps):
            choice[step.node] = step.strategy[tuple(choice[leader] for leader in step.leaders)]
        return tuple(choice.tolist())

    def picks(self, choice: tuple[int, ...]) -> tuple[int, ...]:
        """One pick per node of the form: the choice's own where it is still there, the cheapest where not."""
        picks = []
        for node, own, costs in zip(self.nodes, self.form.strategies, self.form.costs, strict=True):
            same = np.flatnonzero(own == choice[node])
            picks.append(int(same[0]) if same.size else int(np.argmin(costs)))
        return tuple(picks)


def presolve(form: NormalForm, *, time_limit_s: float = math.inf) -> Presolved | None:
    """The reduced form, or None when nothing can satisfy everything; stops reducing at the time limit."""
    end_s = time.perf_counter() + time_limit_s
    try:
        if any(costs.size == 0 for costs in form.costs):
            return None
        work = WorkingForm(form)
        while work.changed and time.perf_counter() < end_s:
            drop_slack_times(work)
            for node in sorted(work.changed):
                if time.perf_counter() > end_s:
                    break
                if node in work.changed:
                    work.changed.discard(node)
                    _reduce(work, node)
        _drop_forbidden(work)
    except NothingFitsError:
        return None
    reduced, nodes = work.form()
    return Presolved(reduced, nodes, tuple(work.steps), len(form.costs))


def _drop_forbidden(work: WorkingForm) -> None:
    """Whatever the time: strategies of infinite cost do not stay."""
    while forbidden := [v for v in sorted(work.changed) if not np.isfinite(work.costs[v]).all()]:
        for node in forbidden:
            work.restrict(node, np.isfinite(work.costs[node]))


def drop_slack_times(work: WorkingForm) -> None:
    """Forget times at which everything fits whatever is chosen, or at which no more is held than next to it.

    Loads that are never live any more are gone with them.
    """
    for node in sorted(work.untidy_loads):
        work.charge_base_usage(node)
    work.keep_times(_most_usage(work) > work.room)
    drops = _rises_and_drops(work)[1]
    work.keep_times(np.append(drops[1:-1] | (work.room[:-1] < work.room[1:]), True)[: work.room.size])
    rises = _rises_and_drops(work)[0]
    work.keep_times(np.append(True, rises[1:-1] | (work.room[1:] < work.room[:-1]))[: work.room.size])


def _rises_and_drops(work: WorkingForm) -> NDArray[np.bool_]:
    """Marks the times at which anything can hold more, or less, than just before."""
    found = np.zeros((2, work.room.size + 1), dtype=bool)
    for load in work.loads:
        if load:
            for marks, points in zip(found, rises_and_drops(load), strict=True):
                marks[points] = True
    for shared in work.shared.values():
        if shared.usages.any():
            found[0, shared.times[0]] = found[1, shared.times[1]] = True
    return found


def _most_usage(work: WorkingForm) -> FloatArray:
    """An upper bound of the usage at each time."""
    change = np.zeros(work.room.size + 1)
    for load in work.loads:
        if load:
            most = load.usages.max(axis=1)
            np.add.at(change, load.starts, most)
            np.subtract.at(change, load.ends, most)
    for shared in work.shared.values():
        versions = np.sort(shared.usages)[::-1][: len(shared.consumers)].sum()
        change[shared.times[0]] += versions
        change[shared.times[1]] -= versions
    return np.cumsum(change)[:-1]


def _reduce(work: WorkingForm, node: int) -> None:
    """Apply everything that is known to one node."""
    while not (is_allowed := np.isfinite(work.costs[node])).all():
        work.restrict(node, is_allowed)  # which can forbid more, through pairs with what has just gone
    work.charge_base_usage(node)
    work.restrict(node, _fits_alone(work, node))
    work.restrict(node, undominated(work, node))
    if _is_free(work, node):
        work.remove_free(node)
    else:
        _follow(work, node)


def _fits_alone(work: WorkingForm, node: int) -> NDArray[np.bool_]:
    """Marks the strategies that fit when all other nodes hold their least."""
    load = work.loads[node]
    is_below = load.usages <= load.least_in_ranges(work.room)[:, None]
    fits: NDArray[np.bool_] = np.logical_and.reduce(is_below, axis=0)
    return fits


def _is_free(work: WorkingForm, node: int) -> bool:
    """True for a node without usage whose removal makes no table larger than those it replaces."""
    if work.loads[node] or work.shared_of[node]:
        return False
    tables = [work.oriented(number, node)[3] for number in work.pairs_of[node]]
    if len(tables) == 2:
        return bool(tables[0].shape[1] * tables[1].shape[1] <= tables[0].size + tables[1].size)
    return len(tables) < 2


def _follow(work: WorkingForm, node: int) -> None:
    """Merge a node into a neighbour each of whose strategies allows only one of the node's own."""
    for number in sorted(work.pairs_of[node]):
        leader, own, leaders, table = work.oriented(number, node)
        is_allowed = np.isfinite(table)
        is_single = is_allowed.sum(axis=0) == 1
        if is_single.all() and (np.bincount(own)[is_allowed.any(axis=1)] == 1).all():
            strategy = np.argsort(own, kind="stable")[is_allowed.argmax(axis=0)]
            work.follow(node, leader, strategy[leaders])
            return
