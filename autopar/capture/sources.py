"""Which line of the user's code made an operator, or raised an error."""

from __future__ import annotations

import linecache
import re
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["error_line", "source_line"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
_ENGINES = (f"{Path(torch.__file__).resolve().parent}/", f"{Path(__file__).resolve().parent}/")
_STANDARD_LIBRARY = f"{Path(sysconfig.get_path('stdlib')).resolve()}/"
_PACKAGES = f"{Path(sysconfig.get_path('purelib')).resolve()}/"


def source_line(stack_trace: str | None) -> str:
    """Returns ``llama.py:41   h = F.silu(self.gate(x)) * self.up(x)`` for torch.export's stack trace.

    It is the innermost frame that is not torch's own; empty where there is none.
    """
    frames = [
        (found["file"], int(found["line"]), found["code"]) for found in _FRAME.finditer(stack_trace or "")
    ]
    return _innermost(frames)


def error_line(error: BaseException) -> str:
    """Returns the user's line that was running when ``error``, or what caused it, was raised."""
    seen: set[int] = set()
    frames: list[tuple[str, int, str]] = []
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = list(_frames(current.__traceback__)) + frames
        current = current.__cause__ or current.__context__
    return _innermost([frame for frame in frames if not frame[0].startswith("<")])


def _frames(traceback: TracebackType | None) -> Iterable[tuple[str, int, str]]:
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        yield file, traceback.tb_lineno, linecache.getline(file, traceback.tb_lineno)
        traceback = traceback.tb_next


def _innermost(frames: list[tuple[str, int, str]]) -> str:
    for file, line, code in reversed(frames):
        if not _is_engine(file):
            return f"{Path(file).name}:{line}   {code.strip()}"
    return ""


@cache
def _is_engine(file: str) -> bool:
    path = str(Path(file).resolve())
    return path.startswith(_ENGINES) or (
        path.startswith(_STANDARD_LIBRARY) and not path.startswith(_PACKAGES)
    )
