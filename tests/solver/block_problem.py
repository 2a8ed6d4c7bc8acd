"""A Llama-like block as a planner states it: operators, weights at rest, and shared tensors on an n-d mesh.

Prices are simple (bytes over bandwidth, operations over a rate), the structure is the real one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from solver import Fan, Node, Problem

BYTES_PER_S = 2e11
OPERATIONS_PER_S = 4e14
LATENCY_S = 1e-5
PLACEMENTS = ("S0", "S1", "S2", "R", "P")

# for each operator kind and factor on one axis: (placements of the operands, weight, result)
FACTORS = {
    "linear": {
        "batch": (("S0",), "R", "S0"),
        "sequence": (("S1",), "R", "S1"),
        "out": (("R",), "S0", "S2"),
        "in": (("S2",), "S1", "P"),
        "none": (("R",), "R", "R"),
    },
    "norm": {"batch": (("S0",), "R", "S0"), "sequence": (("S1",), "R", "S1"), "none": (("R",), "R", "R")},
    "attention": {
        "batch": (("S0",) * 3, None, "S0"),
        "head": (("S2",) * 3, None, "S2"),
        "sequence": (("S1", "R", "R"), None, "S1"),
        "none": (("R",) * 3, None, "R"),
    },
    "pointwise": {name: ((name,), None, name) for name in ("S0", "S1", "S2", "R")},
    "sum": {name: ((name, name), None, name) for name in PLACEMENTS},
}


@dataclass
class Block:
    """Nodes and fans of a block in the making."""

    mesh: tuple[int, ...]
    nodes: list[Node] = field(default_factory=list)
    uses: dict[int, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    produced: dict[int, tuple[np.ndarray, float]] = field(default_factory=dict)

    def layouts(self, per_axis: list[tuple[str, ...]]) -> np.ndarray:
        """Class of each strategy, from its placement on each axis."""
        digits = np.array([[PLACEMENTS.index(p) for p in strategy] for strategy in per_axis])
        return digits @ (len(PLACEMENTS) ** np.arange(len(self.mesh)))

    def operator(
        self, name: str, kind: str, operands: tuple[int, ...], size: float, work: float, weight: float = 0.0
    ) -> int:
        """Add an operator (``size``: bytes of its result) and its weight; returns its node."""
        factors = FACTORS[kind]
        strategies = list(itertools.product(factors, repeat=len(self.mesh)))
        shards = np.array(
            [
                math.prod(n for n, f in zip(self.mesh, s, strict=True) if f not in ("none", "R", "P"))
                for s in strategies
            ]
        )
        node = len(self.nodes)
        self.nodes.append(Node(work / shards / OPERATIONS_PER_S + 5e-6, size / shards, name=name))
        self.produced[node] = (self.layouts([tuple(factors[f][2] for f in s) for s in strategies]), size)
        for position, operand in enumerate(operands):
            wanted = self.layouts([tuple(factors[f][0][position] for f in s) for s in strategies])
            self.uses.setdefault(operand, []).append((node, wanted))
        if weight:
            self._weight(
                f"{name}.weight", node, weight, [tuple(factors[f][1] for f in s) for s in strategies]
            )
        return node

    def _weight(self, name: str, consumer: int, size: float, wanted: list[tuple[str, ...]]) -> None:
        rest = list(itertools.product(("S0", "S1", "R"), repeat=len(self.mesh)))
        shards = np.array([math.prod(n for n, p in zip(self.mesh, s, strict=True) if p != "R") for s in rest])
        node = len(self.nodes)
        self.nodes.append(Node(8 * size / shards / 3e12, 8 * size / shards, name=name))
        self.produced[node] = (self.layouts(rest), size)
        self.uses[node] = [(consumer, self.layouts(wanted))]

    def conversion_s(self, size: float) -> np.ndarray:
        """Seconds from each layout to each, forward and backward, axis by axis."""
        total = np.zeros((1, 1))
        for ranks in self.mesh:
            moved = LATENCY_S + size / BYTES_PER_S * (ranks - 1) / ranks
            axis = np.full((5, 5), 2 * moved / ranks)  # all-to-all both ways
            axis[:3, 3] = axis[4, :3] = axis[3, :3] = moved
            axis[4, 3] = 2 * moved
            axis[:4, 4] = math.inf
            np.fill_diagonal(axis, 0.0)
            total = (axis[:, None, :, None] + total[None, :, None, :]).reshape(5 * len(total), -1)
        return total

    def problem(self, usage_limit: float) -> Problem:
        fans = []
        for node, uses in self.uses.items():
            produced, size = self.produced[node]
            costs = self.conversion_s(size)
            consumers, wanted = zip(*uses, strict=True)
            fans.append(Fan(node, consumers, produced, wanted, costs, np.zeros(costs.shape[1])))
        return Problem(tuple(self.nodes), (), tuple(fans), usage_limit)


def block_problem(
    mesh: tuple[int, ...],
    *,
    layers: int = 1,
    tokens: int = 65_536,
    width: int = 4096,
    limit: float = math.inf,
) -> Problem:
    """``layers`` blocks in a row; ``limit`` is the usage limit in bytes."""
    block = Block(mesh)
    size, hidden = 2.0 * tokens * width, 3.5
    x = block.operator("input", "pointwise", (), size, 0.0)
    matmul = 6.0 * tokens * width * width
    for layer in range(layers):

        def name(part: str, layer: int = layer) -> str:
            return f"{layer}.{part}"

        a = block.operator(name("norm1"), "norm", (x,), size, size, weight=2.0 * width)
        q, k, v = (
            block.operator(name(p), "linear", (a,), size, matmul, weight=2.0 * width**2)
            for p in ("q", "k", "v")
        )
        q, k = (
            block.operator(name(p), "pointwise", (o,), size, size) for p, o in (("rope_q", q), ("rope_k", k))
        )
        o = block.operator(name("sdpa"), "attention", (q, k, v), size, matmul / 2)
        o = block.operator(name("o"), "linear", (o,), size, matmul, weight=2.0 * width**2)
        h = block.operator(name("add1"), "sum", (x, o), size, size)
        a = block.operator(name("norm2"), "norm", (h,), size, size, weight=2.0 * width)
        wide = (hidden * size, hidden * matmul)
        gate, up = (
            block.operator(name(p), "linear", (a,), *wide, weight=2.0 * hidden * width**2)
            for p in ("gate", "up")
        )
        s = block.operator(name("silu"), "pointwise", (gate,), hidden * size, size)
        m = block.operator(name("mul"), "sum", (s, up), hidden * size, size)
        down = block.operator(name("down"), "linear", (m,), size, wide[1], weight=2.0 * hidden * width**2)
        x = block.operator(name("add2"), "sum", (h, down), size, size)
    block.operator("output", "pointwise", (x,), size, 0.0)
    return block.problem(limit)
