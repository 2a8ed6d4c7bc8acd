"""Readable Python identifiers for the values of a segment."""

from __future__ import annotations

import builtins
import keyword
import re

import torch
from torch.nn import functional

__all__ = ["Namer", "identifier"]

RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *dir(torch), *dir(functional)}
    | {"F", "math", "nn", "self", "torch"}
    | {
        "all_gather",
        "all_reduce",
        "all_to_all",
        "attention",
        "axes",
        "axis",
        "build",
        "cross_entropy",
        "embedding",
    }
    | {"dropout", "local", "reduce_scatter", "shard", "sum_gradient"}
)
"""Names that a generated program uses itself; none of torch's ends in an underscore and digits."""


def identifier(text: str) -> str:
    """Returns ``text`` with everything that Python does not allow in a name replaced by ``_``."""
    word = re.sub(r"[^0-9a-zA-Z_]+", "_", text).strip("_") or "value"
    return f"v_{word}" if word[0].isdigit() else word


class Namer:
    """Gives out unique names: ``q`` for the result of the module ``q``, ``add_1`` for an operator's."""

    def __init__(self, taken: frozenset[str] = RESERVED) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def take(self, text: str, *, numbered: bool = False) -> str:
        """Returns a free name for ``text``; numbered names always carry a number."""
        base = identifier(text)
        name = base
        while numbered or name in self._taken:
            number = self._next.get(base, 1)
            self._next[base] = number + 1
            name = f"{base}_{number}"
            numbered = False
        self._taken.add(name)
        return name
