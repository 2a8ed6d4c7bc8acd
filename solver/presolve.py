"""The smallest problem with the same optimum: what is forbidden, dominated, or decided by others is removed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.dominance import undominated
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
    constant: float
    """Cost of the nodes that are gone."""

    def choice(self, picks: tuple[int, ...]) -> tuple[int, ...]:
        """The problem's strategy of every node, from one pick per node of the form."""
        choice = np.full(self.node_count, -1, dtype=np.int64)
        choice[self.nodes] = self.form.choice(picks)
        for step in reversed(self.steps):
            choice[step.node] = step.strategy[tuple(choice[leader] for leader in step.leaders)]
        return tuple(choice.tolist())


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
    except NothingFitsError:
        return None
    reduced, nodes = work.form()
    return Presolved(reduced, nodes, tuple(work.steps), len(form.costs), work.constant)


def drop_slack_times(work: WorkingForm) -> None:
    """Forget times at which everything fits whatever is chosen, or at which no more is live than at the next.

    Loads that are never live any more are gone with them.
    """
    for node in np.flatnonzero(~work.is_gone).tolist():
        work.charge_base_usage(node)
    if work.room.size:
        work.keep_times(_most_usage(work) > work.room)
    ends = np.zeros(work.room.size + 1, dtype=bool)
    for _, last in _live_ranges(work):
        ends[last] = True
    if work.room.size > 1:
        work.keep_times(np.append(ends[1:-1] | (work.room[:-1] < work.room[1:]), True))


def _live_ranges(work: WorkingForm) -> Iterator[tuple[int, int]]:
    for loads in work.loads:
        yield from (load.times for load in loads)
    yield from (shared.times for shared in work.shared.values() if shared.usages.any())


def _most_usage(work: WorkingForm) -> FloatArray:
    """An upper bound of the usage at each time."""
    change = np.zeros(work.room.size + 1)
    for loads in work.loads:
        for load in loads:
            change[load.times[0]] += load.usages.max()
            change[load.times[1]] -= load.usages.max()
    for shared in work.shared.values():
        most = np.sort(shared.usages)[::-1][: len(shared.consumers)].sum()
        change[shared.times[0]] += most
        change[shared.times[1]] -= most
    return np.cumsum(change)[:-1]


def _reduce(work: WorkingForm, node: int) -> None:
    """Apply everything that is known to one node."""
    work.restrict(node, np.isfinite(work.costs[node]))
    work.charge_base_usage(node)
    work.restrict(node, _fits_alone(work, node))
    work.restrict(node, undominated(work, node))
    if _is_free(work, node):
        work.remove_free(node)
    else:
        _follow(work, node)


def _fits_alone(work: WorkingForm, node: int) -> NDArray[np.bool_]:
    """Marks the strategies that fit when all other nodes hold their least."""
    fits = np.ones(work.costs[node].size, dtype=bool)
    for load in work.loads[node]:
        fits &= load.usages <= work.room[slice(*load.times)].min()
    return fits


def _is_free(work: WorkingForm, node: int) -> bool:
    """True for a node without usage whose removal makes no table larger than those it replaces."""
    if work.loads[node] or work.shared_of[node]:
        return False
    tables = [work.oriented(number, node)[3] for number in work.pairs_of[node]]
    if len(tables) == 2:
        return tables[0].shape[1] * tables[1].shape[1] <= tables[0].size + tables[1].size
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
