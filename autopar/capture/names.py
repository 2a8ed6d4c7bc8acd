"""Readable Python identifiers for the values of a segment."""

from __future__ import annotations

import builtins
import keyword
import re

import torch
from torch.nn import functional

from autopar.capture.trace import Trace

__all__ = ["CLASS_NAMES", "Namer", "identifier", "last_words", "module_results"]

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


CLASS_NAMES = frozenset(
    {
        *keyword.kwlist,
        *keyword.softkwlist,
        *dir(builtins),
        "Axis",
        "F",
        "Layout",
        "Module",
        "Tensor",
        "math",
        "nn",
        "torch",
    }
)
"""Names of classes and modules that a generated program uses itself."""


def identifier(text: str) -> str:
    """Returns ``text`` with everything that Python does not allow in a name replaced by ``_``."""
    word = re.sub(r"[^0-9a-zA-Z_]+", "_", text).strip("_") or "value"
    return f"v_{word}" if word[0].isdigit() else word


def last_words(path: str) -> str:
    """Returns ``norm_1`` for ``layers.0.norm_1``, ``mlp_2`` for ``mlp.2``."""
    *parents, last = path.split(".")
    return f"{parents[-1]}_{last}" if last.isdigit() and parents else last


def module_results(trace: Trace) -> set[int]:
    """Returns the tensors that alone leave the innermost module call in which they were made."""
    made_in = {slot: call.modules for call in trace.calls for slot in call.results}
    leaving: dict[str, set[int]] = {}
    for call in trace.calls:
        for slot in call.reads:
            for module in set(made_in.get(slot, ())).difference(call.modules):
                leaving.setdefault(module, set()).add(slot)
    for slot in trace.outputs:
        for module in made_in.get(slot, ()):
            leaving.setdefault(module, set()).add(slot)
    return {slot for slot, modules in made_in.items() if leaving.get(modules[-1]) == {slot}}


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
