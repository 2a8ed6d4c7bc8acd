"""Small random problems: edges, fans, forbidden choices, live intervals and binding limits."""

from __future__ import annotations

import math

import numpy as np

from solver import Edge, Fan, Node, Problem, evaluate

TIMES = 6


def random_problem(seed: int) -> Problem:
    """A problem of 2 to 6 nodes; every second one has a usage limit that is likely to bind."""
    rng = np.random.default_rng(seed)
    nodes = tuple(_node(rng, f"n{v}") for v in range(rng.integers(2, 7)))
    edges = tuple(_edge(rng, nodes) for _ in range(rng.integers(0, 6)))
    fans = tuple(_fan(rng, nodes) for _ in range(rng.integers(0, 4)))
    problem = Problem(nodes, edges, fans)
    return problem if seed % 2 else Problem(nodes, edges, fans, _binding_limit(rng, problem))


def _binding_limit(rng: np.random.Generator, problem: Problem) -> float:
    """A limit near the smaller ones of the peaks that random choices reach."""
    peaks = [
        evaluate(problem, [int(rng.integers(n.costs.size)) for n in problem.nodes]).peak_usage
        for _ in range(12)
    ]
    return float(np.quantile(peaks, rng.uniform(0, 0.6)))


def _costs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Integers or reals, some of them forbidden, some equal."""
    costs = rng.integers(0, 6, shape).astype(float) if rng.random() < 0.5 else rng.random(shape) * 10
    costs[rng.random(shape) < rng.choice([0.0, 0.05, 0.25])] = math.inf
    return costs


def _interval(rng: np.random.Generator) -> tuple[int, int]:
    start, end = sorted(rng.integers(0, TIMES, 2).tolist())
    return (start, end) if rng.random() < 0.6 else (0, TIMES)


def _node(rng: np.random.Generator, name: str) -> Node:
    strategies = int(rng.integers(1, 5))
    usages = rng.integers(0, 5, strategies) * rng.choice([0.0, 1.0])
    return Node(_costs(rng, (strategies,)), usages, _interval(rng), name)


def _edge(rng: np.random.Generator, nodes: tuple[Node, ...]) -> Edge:
    i, j = rng.choice(len(nodes), 2, replace=False).tolist()
    return Edge((i, j), _costs(rng, (nodes[i].costs.size, nodes[j].costs.size)) - rng.choice([0.0, 2.0]))


def _fan(rng: np.random.Generator, nodes: tuple[Node, ...]) -> Fan:
    produced, wanted = (int(count) for count in rng.integers(1, 4, 2))
    producer, *consumers = rng.integers(0, len(nodes), 1 + rng.integers(1, 5)).tolist()
    return Fan(
        producer=producer,
        consumers=tuple(consumers),
        produced=rng.integers(0, produced, nodes[producer].costs.size),
        wanted=tuple(rng.integers(0, wanted, nodes[c].costs.size) for c in consumers),
        costs=_costs(rng, (produced, wanted)),
        usages=rng.integers(0, 4, wanted) * rng.choice([0.0, 1.0]),
        interval=_interval(rng),
    )
