"""What a plan is to be best at: time, memory, or what each device gets done."""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.graph import Graph
from autopar.errors import InfeasiblePlanError, PinError
from autopar.planner.search import Found, Options, search
from cost_models.cluster import Cluster, smaller_clusters

__all__ = ["search_for"]

CLOSE = 0.03
"""The least memory is found to this share of itself."""
TIGHTER = 0.75
"""A limit is tried that leaves this share of the last plan's memory, until one is known that leaves too little."""


def search_for(objective: str, graph: Graph, cluster: Cluster, options: Options) -> tuple[Found, Cluster]:
    """The best plan by ``objective``, and the part of ``cluster`` that it is for.

    ``time``: the fastest step. ``memory``: the smallest peak of the fullest device, to 3 %, and the fastest plan
    that needs no more. ``throughput-per-device``: the most work a device and second, on all devices or fewer.
    Raises as ``search`` does.
    """
    match objective:
        case "memory":
            return _leanest(graph, cluster, options), cluster
        case "throughput-per-device":
            return _busiest(graph, cluster, options)
    return search(graph, cluster, options), cluster


def _leanest(graph: Graph, cluster: Cluster, options: Options) -> Found:
    """Ever tighter limits, until hardly anything is between one that can be kept and one that cannot."""
    found, too_little = search(graph, cluster, options), 0.0
    while (least := float(found.best.peak_bytes)) - too_little > CLOSE * least:
        limit = (too_little + least) / 2 if too_little else TIGHTER * least
        try:
            found = search(graph, cluster, replace(options, memory_bytes=int(limit)))
        except InfeasiblePlanError:
            too_little = limit
    return found


def _busiest(graph: Graph, cluster: Cluster, options: Options) -> tuple[Found, Cluster]:
    """The same batch on every smaller cluster too."""
    found: list[tuple[Found, Cluster]] = []
    first: InfeasiblePlanError | PinError | None = None
    for part in (cluster, *smaller_clusters(cluster)):
        try:
            found.append((search(graph, part, options), part))
        except (InfeasiblePlanError, PinError) as error:
            first = first or error
    if not found:
        assert first is not None
        raise first
    return min(found, key=lambda each: each[0].best.step_s * each[1].devices)
