"""Costs of a form on the move between nodes and pairs: one sweep of tree-reweighted message passing.

A sweep visits the nodes in order. A node first takes from each of its pairs what every entry of a row has in
common, so that the pair's rows all start at 0, and then gives equal shares of what it has to the pairs with nodes
still to be visited. Every choice keeps its cost. Nodes are numbered as they are computed, more or less, so
their own order does well.
"""

from __future__ import annotations

import numpy as np

from solver.normal_form import NormalForm
from solver.problem import FloatArray, IntArray

__all__ = ["MessageTables"]


class MessageTables:
    """What is left in each table; all entries of a row or column that are inf must have been dropped."""

    def __init__(self, form: NormalForm) -> None:
        self.form = form
        self.costs = list(form.costs)
        self.tables = [pair.costs.copy() for pair in form.pairs]
        self.prices = np.zeros(form.room.size)
        self.ends: list[list[_End]] = [[] for _ in form.costs]
        for number, pair in enumerate(form.pairs):
            for end in (0, 1):
                table = self.tables[number] if end == 0 else self.tables[number].T
                other = pair.nodes[1 - end]
                self.ends[pair.nodes[end]].append(
                    _End(table, pair.classes[end], other, pair.classes[1 - end])
                )

    def sweep(self, *, is_forward: bool) -> list[int]:
        """Visit all nodes in one direction; returns each node's best pick given those visited before."""
        picks = [0] * len(self.costs)
        nodes = range(len(self.costs))
        for node in nodes if is_forward else reversed(nodes):
            costs = self.costs[node]
            given = np.zeros(costs.size)
            later = []
            for end in self.ends[node]:
                least = end.table.min(axis=1)
                end.table -= least[:, None]
                costs = costs + least[end.classes]
                if (end.other > node) is is_forward:
                    later.append(end)
                else:
                    given += end.table[end.classes, end.others[picks[end.other]]]
            picks[node] = int(np.argmin(costs + given))
            share = costs / max(len(later), len(self.ends[node]) - len(later), 1)
            for end in later:
                least = end.least(share)
                end.table += least[:, None]
                costs = costs - least[end.classes]
            self.costs[node] = costs
        return picks

    def bound(self) -> float:
        """The least that any choice that fits can cost."""
        least = sum(float(costs.min()) for costs in self.costs)
        least += sum(float(table.min()) for table in self.tables)
        return self.form.constant + least - float(self.prices @ self.form.room)

    def set_prices(self, prices: FloatArray) -> None:
        """Change what is paid per unit of usage at each time point."""
        upto = np.concatenate([[0.0], np.cumsum(prices - self.prices)])
        for node, load in enumerate(self.form.loads):
            if load:
                change = (upto[load.ends] - upto[load.starts]) @ load.usages
                self.costs[node] = self.costs[node] + change
        self.prices = prices


class _End:
    """A pair seen from one of its nodes."""

    __slots__ = ("classes", "order", "other", "others", "starts", "table")

    def __init__(self, table: FloatArray, classes: IntArray, other: int, others: IntArray) -> None:
        self.table = table
        """(own classes, other's classes), a view of what is left."""
        self.classes = classes
        self.other = other
        self.others = others
        self.order = np.argsort(classes, kind="stable")
        self.starts = np.flatnonzero(np.diff(classes[self.order], prepend=-1))

    def least(self, costs: FloatArray) -> FloatArray:
        """(classes,) the least of some costs per strategy."""
        least: FloatArray = np.minimum.reduceat(costs[self.order], self.starts)
        return least
