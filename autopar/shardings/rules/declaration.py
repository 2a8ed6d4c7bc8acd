"""How a sharding rule is declared: as text for operators that are plain loop nests, else as a function."""

from __future__ import annotations

from collections.abc import Callable

from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.notation import loops_of_text

__all__ = ["Rule", "rule"]

Rule = Callable[[Call], Loops | None]


def rule(
    text: str, *, keywords: tuple[str, ...] = (), linear: tuple[int, ...] = (), **properties: object
) -> Rule:
    """A rule in the notation of :mod:`autopar.shardings.notation`.

    ``keywords`` names the positional arguments that callers may also pass by name; ``linear`` lists operands
    that may each be a partial sum; ``properties`` are further fields of :class:`Loops`.
    """

    def loops(call: Call) -> Loops:
        count = len(call.operator.arguments)
        passed = [name for name, _ in call.operator.keywords]

        def position(place: int) -> int:
            return place if place < count else keywords.index(passed[place - count])

        operands = [
            (position(place), value.shape)
            for place, value in zip(call.tensor_positions(), call.operands, strict=True)
        ]
        results = [value.shape for value in call.results if value is not None]
        sets = tuple(frozenset([operand]) for operand in linear if operand < len(operands))
        return loops_of_text(text, operands, results, linear=sets, **properties)

    return loops
