"""A progress bar where rich is installed and there is a terminal, a line per family elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "shown_progress"]

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how many of it are done, and how many there are."""


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A function to call with what is measured, how many of it are done, and how many there are."""
    try:
        import rich.progress
    except ImportError:
        yield _lines()
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    with rich.progress.Progress(console=rich.get_console()) as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show


def _lines() -> Progress:
    """Prints when something starts and when it is done."""
    started_s = time.monotonic()
    begun: set[str] = set()

    def show(what: str, done: int, total: int) -> None:
        if what not in begun or done == total:
            begun.add(what)
            print(
                f"{time.monotonic() - started_s:6.1f} s  {what}: {done} of {total}",
                file=sys.stderr,
                flush=True,
            )

    return show
