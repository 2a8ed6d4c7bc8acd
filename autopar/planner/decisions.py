"""Everything the search decides, and nothing that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.planner.space import Candidate
from autopar.planner.tensors import Item
from autopar.shardings.placement import Layout

__all__ = ["Decisions", "decisions_of"]


@dataclass(frozen=True, slots=True)
class Decisions:
    """The free choices of a plan on one mesh; layouts are in mesh order."""

    strategies: dict[tuple[str, str], tuple[str, ...]]
    """Choice on each axis, by (segment type, operator)."""
    boundaries: dict[tuple[str, str], Layout]
    """Layout of each segment input, by (segment type, value)."""
    parameters: dict[str, Layout]
    """Layout at rest, by the first name of each parameter group."""
    inputs: dict[str, Layout]
    """Layout of each tensor of the batch."""


def decisions_of(items: dict[Item, tuple[Candidate, ...]], choice: tuple[int, ...]) -> Decisions:
    """The solver's choice, one index per item, in words."""
    decisions = Decisions({}, {}, {}, {})
    for (item, candidates), index in zip(items.items(), choice, strict=True):
        chosen = candidates[index]
        if chosen.strategy is not None:
            decisions.strategies[item.type, item.name] = chosen.strategy.names
        elif item.kind == "boundary":
            decisions.boundaries[item.type, item.name] = chosen.results[0]
        elif item.kind == "parameter":
            decisions.parameters[item.name] = chosen.results[0]
        elif item.kind == "input":
            decisions.inputs[item.name] = chosen.results[0]
    return decisions
