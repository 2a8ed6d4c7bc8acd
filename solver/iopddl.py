"""Reads the public format of sharding problems (ASPLOS 2025 contest, github.com/google/iopddl)."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from solver.problem import Edge, FloatArray, InvalidProblemError, Node, Problem

__all__ = ["FORBIDDEN_COST", "InstanceError", "read_instance"]

FORBIDDEN_COST = 1e17
"""Costs from here on mean forbidden (the contest's rule)."""


class InstanceError(ValueError):
    """The file is missing, damaged or not in the format; the message names the file and the reason."""


def read_instance(path: Path) -> Problem:
    """The problem in a ``.json`` or ``.json.gz`` file."""
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        return _problem(content["problem"])
    except (OSError, EOFError, zlib.error) as error:
        raise InstanceError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise InstanceError(f"{path} has no key {error}: is it an iopddl instance?") from error
    except (InvalidProblemError, IndexError, TypeError, ValueError) as error:
        raise InstanceError(f"{path} is not an iopddl instance: {error}") from error


def _problem(content: dict[str, Any]) -> Problem:
    nodes = [
        Node(_costs(costs), usages, (int(start), int(end)), f"{number}")
        for number, (costs, usages, (start, end)) in enumerate(
            zip(
                content["nodes"]["costs"],
                content["nodes"]["usages"],
                content["nodes"]["intervals"],
                strict=True,
            )
        )
    ]
    edges = []
    table = content.get("edges", {"nodes": [], "costs": []})
    for (i, j), costs in zip(table["nodes"], table["costs"], strict=True):
        shape = (nodes[i].costs.size, nodes[j].costs.size)
        if i == j:
            own = nodes[i].costs + _costs(costs).reshape(shape).diagonal()
            nodes[i] = Node(own, nodes[i].usages, nodes[i].interval, nodes[i].name)
        else:
            edges.append(Edge((i, j), _costs(costs).reshape(shape)))
    limit = content.get("usage_limit")
    return Problem(tuple(nodes), tuple(edges), usage_limit=math.inf if limit is None else float(limit))


def _costs(values: list[float]) -> FloatArray:
    costs = np.array(values, dtype=np.float64)
    return np.where(costs >= FORBIDDEN_COST, math.inf, costs)
