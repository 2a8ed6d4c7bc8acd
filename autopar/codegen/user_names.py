"""What the user calls a result: the variables on the left of the line that makes it."""

from __future__ import annotations

import keyword
import re

from autopar.capture.graph import Operator, SegmentType

__all__ = ["user_names"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"\S+:\d+\s+({_NAME}(?:\s*,\s*{_NAME})*)\s*(?::[^=]*)?=(?!=)")
"""``gpt.py:43   q = …``, ``q, k, v = …``, ``x: Tensor = …``."""


def user_names(segment: SegmentType) -> dict[str, str]:
    """The user's name of every value that is the last one made by an assignment, by value name.

    The same operator in the same line again, as in a function that is called twice, counts as last too.
    """
    last = {operator.source: operator for operator in segment.operators if operator.source}
    found = {}
    for operator in segment.operators:
        final = last.get(operator.source)
        if final is not None and (operator.target, operator.module) == (final.target, final.module):
            names = _assigned(operator.source)
            if len(names) == len(operator.results):
                found.update(_named(operator, names))
    return found


def _assigned(source: str) -> list[str]:
    match = _ASSIGNMENT.match(source)
    return [name.strip() for name in match[1].split(",")] if match else []


def _named(operator: Operator, names: list[str]) -> dict[str, str]:
    pairs = zip(operator.results, names, strict=True)
    return {value: name for value, name in pairs if value and not keyword.iskeyword(name) and name != "_"}
