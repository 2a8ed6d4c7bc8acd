"""Graph data as the text that a plan holds, and back."""

from __future__ import annotations

import re

from autopar.capture.graph import Argument, Ref, Symbol, Value
from autopar.errors import PlanError

__all__ = ["read_argument", "read_tensor", "write_argument", "write_tensor"]

_TENSOR = re.compile(r"([a-z][a-z0-9_]*)\[((?:\d+(?:, \d+)*)?)\]( grad)?")
_SYMBOL = re.compile(r"(dtype|device|layout|memory_format|training):(.*)", re.DOTALL)


def write_tensor(value: Value) -> str:
    """``float32[8, 64] grad``"""
    return f"{value.dtype}{list(value.shape)}" + (" grad" if value.requires_grad else "")


def read_tensor(name: str, text: str) -> Value:
    """The inverse of :func:`write_tensor`. Raises ``PlanError``."""
    match = _TENSOR.fullmatch(text)
    if not match:
        raise PlanError(
            f"value '{name}': '{text}' is no tensor; write dtype[size, …], such as float32[8, 64] grad"
        )
    shape = tuple(int(size) for size in match[2].split(", ") if size)
    return Value(name, shape, match[1], bool(match[3]))


def write_argument(argument: Argument) -> object:
    """An argument as JSON: values as ``%name``, strings in quotes, torch objects as ``kind:name``."""
    match argument:
        case Ref(value):
            return f"%{value}"
        case Symbol(kind, name):
            return f"{kind}:{name}"
        case str():
            return f"'{argument}'"
        case tuple():
            return [write_argument(item) for item in argument]
        case float() if argument in (float("inf"), float("-inf")) or argument != argument:
            return f"float:{argument}"
    return argument


def read_argument(operator: str, data: object) -> Argument:
    """The inverse of :func:`write_argument`. Raises ``PlanError`` naming the operator."""
    match data:
        case list():
            return tuple(read_argument(operator, item) for item in data)
        case None | bool() | int() | float():
            return data
        case str() if data.startswith("%"):
            return Ref(data[1:])
        case str() if len(data) >= 2 and data[0] == data[-1] == "'":
            return data[1:-1]
        case "float:inf" | "float:-inf" | "float:nan":
            return float(data.removeprefix("float:"))
        case str():
            match = _SYMBOL.fullmatch(data)
            if match:
                return Symbol(match[1], match[2])
    raise PlanError(
        f"operator {operator}: {data!r} is no argument; write %value, 'text', dtype:float32 or a number"
    )
