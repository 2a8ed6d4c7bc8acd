"""Lines of source with a comment each: comments of neighbours line up, and lines stay short."""

from __future__ import annotations

import ast
from dataclasses import dataclass

__all__ = ["CODE_WIDTH", "Line", "layout_lines", "statement"]

CODE_WIDTH = 96
"""Longest statement that stays on one line, indentation apart."""
COMMENT_COLUMN = 80
"""Comments start no further right than this, unless the code does."""
LINE_WIDTH = 120
"""A comment that would reach beyond this is left out, unless it says what happens in the backward."""


@dataclass(frozen=True, slots=True)
class Line:
    """One statement, or one source comment."""

    code: str
    note: str = ""
    is_source: bool = False
    """A line of the user's own program, above what was made of it."""
    indent: int = 0
    is_essential: bool = False
    """The note is kept however long the line gets."""


def statement(target: str, expression: str, note: str) -> list[Line]:
    """``target = expression``, with the arguments of the outermost call one a line where it is too long."""
    code = f"{target} = {expression}"
    parts = _call_parts(expression) if len(code) > CODE_WIDTH else None
    if parts is None:
        return [Line(code, note)]
    head, arguments, tail = parts
    inner = [Line(f"{argument},", indent=1) for argument in arguments]
    return [Line(f"{target} = {head}"), *inner, Line(tail, note)]


def _call_parts(expression: str) -> tuple[str, list[str], str] | None:
    """A call as what stands before, in and after its brackets; None for anything that does not gain by it."""
    call = ast.parse(expression, mode="eval").body
    if not isinstance(call, ast.Call) or not (call.args or call.keywords):
        return None
    nodes = [*call.args, *(word.value for word in call.keywords)]
    written = [ast.get_source_segment(expression, node) or "" for node in nodes]
    names = ["" for _ in call.args] + [f"{word.arg}=" for word in call.keywords]
    head = (ast.get_source_segment(expression, call.func) or "") + "("
    if len(head) > CODE_WIDTH // 2:
        return None
    return head, [name + text for name, text in zip(names, written, strict=True)], ")"


def layout_lines(lines: list[Line], indent: str) -> list[str]:
    """The lines as text."""
    written: list[str] = []
    for group in _groups(lines):
        widths = [len(line.code) + 4 * line.indent for line in group if line.note and not line.is_source]
        column = max((width for width in widths if width <= COMMENT_COLUMN), default=0)
        written += [_text(line, indent, column) for line in group]
    return written


def _text(line: Line, indent: str, column: int) -> str:
    if line.is_source:
        return f"{indent}{'    ' * line.indent}# {line.note}"
    code = indent + "    " * line.indent + line.code
    if not line.note:
        return code
    full = f"{code:<{column + len(indent)}}  # {line.note}"
    return full if len(full) <= LINE_WIDTH or line.is_essential else code


def _groups(lines: list[Line]) -> list[list[Line]]:
    """Statements between two source comments share one comment column."""
    groups: list[list[Line]] = [[]]
    for line in lines:
        if line.is_source and groups[-1] and not groups[-1][-1].is_source:
            groups.append([])
        groups[-1].append(line)
    return groups
