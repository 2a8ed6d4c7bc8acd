"""One short text that is equal for two graphs exactly when a plan for one is a plan for the other."""

from __future__ import annotations

from dataclasses import asdict, replace
from hashlib import sha256

from autopar.capture.graph import Graph, SegmentType

__all__ = ["fingerprint"]


def fingerprint(graph: Graph) -> str:
    """Returns the sha256 of a graph's structure: names, shapes, dtypes, operators and wiring.

    Source lines and notes make no difference, nor does the device that the module was on.
    """
    bare = replace(graph, types=tuple(_without_sources(each) for each in graph.types), notes=())
    return sha256(repr(asdict(bare)).encode()).hexdigest()


def _without_sources(kind: SegmentType) -> SegmentType:
    return replace(kind, operators=tuple(replace(each, source="") for each in kind.operators))
