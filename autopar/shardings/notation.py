"""Sharding rules as text: ``"… i, o i, o -> … o"``.

Left of the arrow one group of factors per positional argument, right of it one per result. ``…`` stands for
any number of leading dims, ``_`` for an argument that is no tensor, ``[h]`` for a factor that stays whole.
A dim of size 1 where others have more is broadcast and belongs to no factor. Optional tensors may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from autopar.shardings.loops import Dim, DimFactor, Loops

__all__ = ["Notation", "loops_of_text"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Notation:
    """A parsed rule: factor names per argument and per result."""

    operands: tuple[tuple[str, ...] | None, ...]
    results: tuple[tuple[str, ...], ...]
    whole: frozenset[str]


@cache
def parse_notation(text: str) -> Notation:
    left, _, right = text.partition("->")
    whole = {word.strip("[]") for word in text.replace(",", " ").split() if word.startswith("[")}

    def group(part: str) -> tuple[str, ...] | None:
        names = tuple(word.strip("[]") for word in part.split())
        return None if names == ("_",) else names

    operands = tuple(group(part) for part in left.split(","))
    results = tuple(group(part) or () for part in right.split(","))
    return Notation(operands, results, frozenset(whole))


def loops_of_text(
    text: str, operands: Sequence[tuple[int, Shape]], results: Sequence[Shape], **properties: object
) -> Loops:
    """The loop nest that ``text`` says an operator has.

    ``operands`` are the tensor arguments as (positional index, shape), ``results`` the result shapes;
    ``properties`` are further fields of :class:`Loops`.
    """
    notation = parse_notation(text)
    named_operands = [_name_dims(_at(notation.operands, index), shape) for index, shape in operands]
    named_results = [
        _name_dims(names, shape) for names, shape in zip(notation.results, results, strict=False)
    ]
    sizes: dict[str, int] = {}
    for names, shape in zip(
        (*named_operands, *named_results), (*(shape for _, shape in operands), *results), strict=True
    ):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size)
    whole = notation.whole | {name for name in sizes if name.startswith("?")}
    return Loops(
        operands=tuple(
            _dims(names, shape, sizes) for names, (_, shape) in zip(named_operands, operands, strict=True)
        ),
        results=tuple(
            _dims(names, shape, sizes) for names, shape in zip(named_results, results, strict=True)
        ),
        whole=frozenset(whole),
        **properties,  # type: ignore[arg-type]
    )


def _at(groups: tuple[tuple[str, ...] | None, ...], index: int) -> tuple[str, ...]:
    group = groups[index] if index < len(groups) else None
    if group is None:
        raise ValueError(f"the rule has no tensor at argument {index}")
    return group


def _name_dims(names: tuple[str, ...], shape: Shape) -> tuple[str, ...]:
    """One name per dim: ``…`` spelled out, counted from its right end so that broadcasting lines up."""
    if "…" in names:
        at = names.index("…")
        count = len(shape) - (len(names) - 1)
        names = (*names[:at], *(f"…{count - i}" for i in range(count)), *names[at + 1 :])
    if len(names) != len(shape):
        raise ValueError(
            f"the rule names {len(names)} dims ({' '.join(names)}), the tensor has shape {shape}"
        )
    return names


def _dims(names: tuple[str, ...], shape: Shape, sizes: dict[str, int]) -> tuple[Dim, ...]:
    return tuple(
        () if size == 1 and sizes[name] > 1 else (DimFactor(name),)
        for name, size in zip(names, shape, strict=True)
    )
