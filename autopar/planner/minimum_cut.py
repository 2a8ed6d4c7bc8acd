"""The cheapest set of vertices that separates sources from targets in a small directed graph.

Maximum flow by shortest augmenting paths (Edmonds and Karp, 1972) on the graph with every vertex split in two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise

__all__ = ["smallest_cut"]

Node = tuple[str, int]
"""A vertex on its way in (0) or out (1); the two ends have no name."""
_START, _END = ("", 0), ("", 1)
_UNLIMITED = 1 << 62


def smallest_cut(
    weights: Mapping[str, int],
    edges: Iterable[tuple[str, str]],
    sources: frozenset[str],
    targets: frozenset[str],
) -> frozenset[str]:
    """Vertices of least total weight that lie on every path from a source to a target, ends included.

    Among equals those nearest to the targets.
    """
    room: dict[Node, dict[Node, int]] = {_START: {}, _END: {}}

    def add(first: Node, second: Node, capacity: int) -> None:
        room.setdefault(first, {})[second] = capacity
        room.setdefault(second, {}).setdefault(first, 0)

    for name, weight in weights.items():
        add((name, 0), (name, 1), weight)
    for first, second in edges:
        add((first, 1), (second, 0), _UNLIMITED)
    for name in sources:
        add(_START, (name, 0), _UNLIMITED)
    for name in targets:
        add((name, 1), _END, _UNLIMITED)
    while path := _path(room):
        _augment(room, path)
    behind = _behind(room)
    return frozenset(name for name in weights if (name, 1) in behind and (name, 0) not in behind)


def _path(room: Mapping[Node, Mapping[Node, int]]) -> list[Node]:
    """The shortest path with room left from start to end; empty where there is none."""
    before: dict[Node, Node] = {_START: _START}
    waiting = deque([_START])
    while waiting:
        node = waiting.popleft()
        if node == _END:
            path = [node]
            while path[-1] != _START:
                path.append(before[path[-1]])
            return path[::-1]
        for following, capacity in room[node].items():
            if capacity > 0 and following not in before:
                before[following] = node
                waiting.append(following)
    return []


def _augment(room: dict[Node, dict[Node, int]], path: list[Node]) -> None:
    steps = list(pairwise(path))
    amount = min(room[first][second] for first, second in steps)
    for first, second in steps:
        room[first][second] -= amount
        room[second][first] += amount


def _behind(room: Mapping[Node, Mapping[Node, int]]) -> set[Node]:
    """Nodes from which the end can still be reached."""
    back: dict[Node, list[Node]] = {}
    for first, following in room.items():
        for second, capacity in following.items():
            if capacity > 0:
                back.setdefault(second, []).append(first)
    found, waiting = {_END}, [_END]
    while waiting:
        for node in back.get(waiting.pop(), ()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found
