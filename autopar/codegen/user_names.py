"""What a person would call a result: the variable that the user assigns, or a word for the operator."""

from __future__ import annotations

import keyword
import re

from autopar.capture.graph import Operator, SegmentType

__all__ = ["user_names"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"\S+:\d+\s+({_NAME}(?:\s*,\s*{_NAME})*)\s*(?::[^=]*)?=(?!=)")
"""``gpt.py:43   q = …``, ``q, k, v = …``, ``x: Tensor = …``."""


_WORDS = {
    "aten.cross_entropy_loss.default": "loss",
    "aten.scaled_dot_product_attention.default": "attended",
}
"""What to call the results of operators with long names."""


def user_names(segment: SegmentType) -> dict[str, str]:
    """The user's name of every value that is the last one made by an assignment, by value name.

    The same operator in the same line again, as in a function that is called twice, counts as last too.
    """
    last = {operator.source: operator for operator in segment.operators if operator.source}
    found = {
        name: _WORDS[operator.target]
        for operator in segment.operators
        for name in operator.results
        if name and operator.target in _WORDS
    }
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
