"""Seconds of a training step: the critical path, and what sticks out of data-parallel traffic beside it."""

from __future__ import annotations

from autopar.planner.prices import Prices
from autopar.planner.realize import Realized

__all__ = ["step_s"]


def step_s(realized: Realized, prices: Prices) -> float:
    """Operators and conversions one after the other; parameter gathers and gradient sums run beside them.

    On a GPU they overlap the compute of the whole step; on CPUs, where compute and communication share the
    cores, nothing is hidden.
    """
    busy = realized.operator_s + realized.conversion_s
    upkeep = sum(realized.upkeep_s.values())
    traffic = realized.traffic_s
    optimizer = upkeep - traffic
    hidden = min(traffic, realized.operator_s) if prices.cluster.device.kind == "cuda" else 0.0
    return busy + optimizer + traffic - hidden
