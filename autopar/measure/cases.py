"""Operators to be timed: what they do, and how to run them on rotating, random inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cost_models.operators import Work

__all__ = ["Case", "Pass", "differentiable", "plain", "repeats_for"]

LEAST_RUN_S = 1.5e-4
"""A run repeats its operator until it should take this long, so that the clock's own error is small."""
FASTEST_FLOPS_PER_S = 5e14
FASTEST_BYTES_PER_S = 3e12
MOST_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Pass:
    """One timed part of a case."""

    name: str
    work: Work
    """Of one operator; ``run`` does it ``repeats`` times."""
    run: Callable[[], None]
    repeats: int


@dataclass(frozen=True, slots=True)
class Case:
    """Something to be timed: one pass, or a forward and the backward that consumes its results."""

    name: str
    held_bytes: float
    """Memory that its inputs and results take, roughly."""
    prepare: Callable[[], tuple[Pass, ...]]
    """Allocates the inputs; the passes are run in order, again and again."""


def repeats_for(work: Work, most: int = MOST_REPEATS) -> int:
    """How often a run on a GPU repeats ``work``: once where it is long, more often where it is short."""
    estimate_s = max(work.flops / FASTEST_FLOPS_PER_S, work.moved_bytes / FASTEST_BYTES_PER_S, 1e-6)
    return min(max(round(LEAST_RUN_S / estimate_s), 1), most)


def differentiable(
    name: str,
    function: Callable[..., Tensor],
    make_inputs: Callable[[], tuple[Tensor, ...]],
    *,
    forward: Work,
    backward: Work,
    repeats: int,
) -> Case:
    """A case that times ``function`` and then its gradient for all inputs that require one."""

    def prepare() -> tuple[Pass, ...]:
        sets = [make_inputs() for _ in range(repeats)]
        wanted = [tuple(tensor for tensor in inputs if tensor.requires_grad) for inputs in sets]
        gradients = [torch.randn_like(function(*inputs)) for inputs in sets]
        results: list[Tensor] = []

        def run_forward() -> None:
            results[:] = [function(*inputs) for inputs in sets]

        def run_backward() -> None:
            for result, gradient, leaves in zip(results, gradients, wanted, strict=True):
                torch.autograd.grad(result, leaves, gradient)
            results.clear()

        return (
            Pass(name, forward, run_forward, repeats),
            Pass(f"{name} backward", backward, run_backward, repeats),
        )

    moved = max(forward.moved_bytes, backward.moved_bytes)
    return Case(name, 2.0 * repeats * moved, prepare)


def plain(name: str, function: Callable[..., object], sets: Sequence[tuple[Tensor, ...]], work: Work) -> Pass:
    """A pass that runs ``function`` on each set of inputs and keeps the results apart until the end."""

    def run() -> None:
        results = [function(*inputs) for inputs in sets]
        results.clear()

    return Pass(name, work, run, len(sets))
