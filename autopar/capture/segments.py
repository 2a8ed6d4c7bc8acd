"""Where to cut a trace: each call of a repeated block is a run, and so is all that lies between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from autopar.capture.trace import Call

__all__ = ["Run", "cut", "repeated_blocks", "repeated_calls"]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive operator calls that make one segment."""

    module: str
    """Path of the repeated block, without the ``@1`` of a second call; empty for runs of the root module."""
    calls: tuple[Call, ...]


def repeated_blocks(module: nn.Module, path: str = "") -> frozenset[str]:
    """Returns the paths of the outermost repeated blocks.

    A repeated block is a child of a ``ModuleList`` or ``Sequential`` that has children itself and at least
    one sibling of its class.
    """
    prefix = f"{path}." if path else ""
    children = list(module.named_children())
    repeated: set[str] = set()
    if isinstance(module, nn.ModuleList | nn.Sequential):
        count = Counter(type(child) for _, child in children if _is_composite(child))
        repeated = {name for name, child in children if count[type(child)] > 1}
    inner = (repeated_blocks(child, prefix + name) for name, child in children if name not in repeated)
    return frozenset(prefix + name for name in repeated).union(*inner)


def repeated_calls(module: nn.Module, calls: list[Call], blocks: frozenset[str]) -> frozenset[str]:
    """Returns the paths of composite modules that run more than once, outermost first.

    Modules in a block, or around one, do not count: the blocks do.
    """
    called_again = {each.partition("@")[0] for call in calls for each in call.modules if "@" in each}
    found: set[str] = set()
    for path in sorted(called_again, key=len):
        is_apart = not any(_is_inside(path, each) or _is_inside(each, path) for each in (*blocks, *found))
        if is_apart and _is_composite(module.get_submodule(path)):
            found.add(path)
    return frozenset(found)


def _is_inside(path: str, around: str) -> bool:
    return path == around or path.startswith(f"{around}.") or not around


def _is_composite(module: nn.Module) -> bool:
    """Whether a module has children and a forward, which lists and dicts of modules lack."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict) and any(True for _ in module.children())


def cut(calls: list[Call], blocks: frozenset[str], is_foreign: Callable[[Call, str], bool]) -> list[Run]:
    """Cuts calls into runs.

    A block's call stays with the root's operators when its own are not consecutive, or when one of them
    ``is_foreign``: needs a parameter from outside the block.
    """
    owners = [_owner(call, blocks) for call in calls]
    runs = Counter(owner for owner, _ in groupby(owners))
    whole = {owner for owner in runs if runs[owner] == 1}
    whole -= {
        owner for owner, call in zip(owners, calls, strict=True) if is_foreign(call, owner.partition("@")[0])
    }
    owners = [owner if owner in whole else "" for owner in owners]
    cuts = groupby(zip(owners, calls, strict=True), key=lambda pair: pair[0])
    return [Run(owner.partition("@")[0], tuple(call for _, call in pairs)) for owner, pairs in cuts]


def _owner(call: Call, blocks: frozenset[str]) -> str:
    """The module call, ``layers.3`` or ``layer@2``, of the block that an operator belongs to; or empty."""
    return next((each for each in call.modules if each.partition("@")[0] in blocks), "")
