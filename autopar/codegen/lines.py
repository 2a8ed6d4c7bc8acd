"""Lines of source with a comment each, laid out so that comments of neighbours line up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Line", "layout_lines"]

COMMENT_COLUMN = 96
"""Comments start no further right than this."""


@dataclass(frozen=True, slots=True)
class Line:
    """One statement, or one source comment."""

    code: str
    note: str = ""
    is_source: bool = False
    """A line of the user's own program, above what was made of it."""
    indent: int = 0


def layout_lines(lines: list[Line], indent: str) -> list[str]:
    """The lines as text; a blank line before each new line of the user's source."""
    written: list[str] = []
    for group in _groups(lines):
        width = max((len(line.code) + 4 * line.indent for line in group if not line.is_source), default=0)
        column = min(width, COMMENT_COLUMN)
        for line in group:
            prefix = indent + "    " * line.indent
            if line.is_source:
                written.append(f"{prefix}# {line.note}")
            elif line.note:
                padding = " " * max(0, column - len(line.code) - 4 * line.indent)
                written.append(f"{prefix}{line.code}{padding}  # {line.note}")
            else:
                written.append(prefix + line.code)
    return written


def _groups(lines: list[Line]) -> list[list[Line]]:
    """Statements between two source comments share one comment column."""
    groups: list[list[Line]] = [[]]
    for line in lines:
        if line.is_source and groups[-1] and not groups[-1][-1].is_source:
            groups.append([])
        groups[-1].append(line)
    return groups
