"""Turning a plan's strings into source that cannot become other source: names, paths, literals, comments."""

from __future__ import annotations

import ast
import keyword
import math
import re

from autopar.capture.graph import Argument, Ref, Symbol
from autopar.errors import PlanError

__all__ = ["atom", "attribute", "comment", "identifier", "literal", "quoted", "target_parts"]

_TARGET = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_SYMBOLS = {
    "dtype": re.compile(r"[a-z][a-z0-9_]*"),
    "memory_format": re.compile(r"[a-z][a-z0-9_]*"),
    "layout": re.compile(r"[a-z][a-z0-9_]*"),
}


def identifier(name: str) -> str:
    """``name`` itself, if it is a plain Python identifier. Raises ``PlanError`` otherwise."""
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise PlanError(f"'{_short(name)}' is not a name that a program can use. Plan again from the model.")
    return name


def atom(text: str) -> str:
    """``text`` in brackets, unless it binds as closely as a name or a call does."""
    body = ast.parse(text, mode="eval").body
    is_atom = isinstance(body, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.List | ast.Constant)
    return text if is_atom else f"({text})"


def attribute(owner: str, path: str) -> str:
    """``self`` and ``layers.0.q`` as ``self.layers[0].q``. Raises ``PlanError`` where a part is no name."""
    expression = owner
    for part in filter(None, path.split(".")):
        expression += f"[{int(part)}]" if part.isascii() and part.isdigit() else f".{identifier(part)}"
    return expression


def comment(text: str) -> str:
    """``text`` on one line of printable characters."""
    return "".join(character if character.isprintable() else " " for character in text).rstrip()


def quoted(text: str) -> str:
    """A double-quoted literal, as the formatter would write it."""
    written = repr(text)
    return f'"{text}"' if written == f"'{text}'" and '"' not in text else written


def target_parts(target: str) -> tuple[str, str, str]:
    """Namespace, name and overload of ``aten.name.overload``. Raises ``PlanError`` for anything else."""
    match = _TARGET.fullmatch(target)
    if not match:
        raise PlanError(f"'{_short(target)}' is not an operator. Plan again from the model.")
    return match[1], match[2], match[3]


def literal(argument: Argument, names: dict[str, str], device: str) -> str:
    """An argument as source; ``names`` gives the expression of each value, ``device`` that of the device."""
    match argument:
        case Ref(value):
            return names[value]
        case Symbol("device", _):
            return device
        case Symbol("training", _):
            return "self.training"
        case Symbol(kind, name) if kind in _SYMBOLS and _SYMBOLS[kind].fullmatch(name):
            return f"torch.{name}"
        case Symbol(kind, name):
            raise PlanError(f"'{_short(kind)}:{_short(name)}' is not an argument that a program can use.")
        case tuple():
            return "[" + ", ".join(literal(item, names, device) for item in argument) + "]"
        case str():
            return quoted(argument)
        case float() if not math.isfinite(argument):
            return f'float("{argument}")'
    return repr(argument)


def _short(text: str) -> str:
    printable = comment(text)
    return printable if len(printable) <= 40 else printable[:37] + "..."
