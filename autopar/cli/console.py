"""Where the commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console, RenderableType
from rich.text import Text

__all__ = ["log", "only_results_on_stdout", "print_error", "print_json", "print_result"]

PLAIN_WIDTH = 120
"""Columns of what is written to a file or a pipe."""


def _console(*, is_stderr: bool) -> Console:
    stream = sys.stderr if is_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)


def print_result(result: RenderableType) -> None:
    """What was asked for, laid out for people."""
    _console(is_stderr=False).print(result)


def print_json(text: str) -> None:
    """What was asked for, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def log(text: str) -> None:
    """A line about what is going on."""
    _console(is_stderr=True).print(Text(text, style="dim"), soft_wrap=True)


def print_error(text: str) -> None:
    """The one thing that went wrong."""
    _console(is_stderr=True).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """What a user's model file prints while it is imported or built goes to stderr."""
    with redirect_stdout(sys.stderr):
        yield
