"""Which part of a program a segment is, and how that part runs: blocks, the loss head, the rest of the root."""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.graph import Graph
from autopar.planner.execution import Execution

__all__ = ["BLOCK", "HEAD", "ROOT", "execution_of", "segment_roles"]

BLOCK, HEAD, ROOT = "block", "head", "root"
"""A block; what follows the last one; the rest of the root's forward."""


def segment_roles(graph: Graph) -> dict[str, str]:
    """Role of every segment type. The head is the one call that follows the last block."""
    roles = {call.type: BLOCK if call.module else ROOT for call in graph.calls}
    if len(graph.calls) > 1 and graph.calls[-2].module and not graph.calls[-1].module:
        roles[graph.calls[-1].type] = HEAD
    return roles


def execution_of(role: str, execution: Execution) -> Execution:
    """How a segment of this role runs: only blocks are recomputed, and the rest of the root is never compiled."""
    if role == BLOCK:
        return execution
    return replace(execution, recompute="none", is_compiled=execution.is_compiled and role == HEAD)
