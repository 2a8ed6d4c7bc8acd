"""The answer of every method: a choice, its cost, and how far from the optimum it can be."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["Solution", "Status"]


class Status(enum.StrEnum):
    """What is known about a choice."""

    optimal = "optimal"
    """No choice is cheaper by more than the gap that was asked for."""
    feasible = "feasible"
    """A choice that satisfies everything; a cheaper one may exist."""
    infeasible = "infeasible"
    """Proven: no choice satisfies everything."""
    timed_out = "timed_out"
    """No choice was found in the time given; one may exist."""


@dataclass(frozen=True, slots=True)
class Solution:
    """One strategy per node, its cost, and a bound below which no choice can be."""

    status: Status
    choice: tuple[int, ...] | None
    """Strategy of every node; None when none was found."""
    cost: float
    """inf when there is no choice."""
    lower_bound: float
    """No choice costs less; inf when the problem is infeasible."""
    wall_s: float
    method: str
    """What found the choice and its bound: ``elimination``, ``ilp``…"""

    @classmethod
    def of(
        cls, choice: tuple[int, ...] | None, cost: float, lower_bound: float, *, gap: float, method: str
    ) -> Solution:
        """The solution that a choice (or None, with cost inf) and a bound amount to; its time is 0 s."""
        lower_bound = min(lower_bound, cost)
        if choice is not None:
            is_proven = cost - lower_bound <= gap * abs(cost)
            status = Status.optimal if is_proven else Status.feasible
        else:
            status = Status.infeasible if lower_bound == math.inf else Status.timed_out
        return cls(status, choice, cost, lower_bound, 0.0, method)

    @property
    def gap(self) -> float:
        """(cost − lower bound) / |cost|; 0 when both are equal, inf without a choice or a bound."""
        if self.choice is None:
            return math.inf
        difference = self.cost - self.lower_bound
        return 0.0 if difference <= 0 else difference / abs(self.cost) if self.cost else math.inf
