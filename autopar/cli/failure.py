"""Errors of training processes, left as files so that the launcher can tell which came first."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec

from autopar.errors import AutoparError

__all__ = ["Failure", "first_failure", "leave_failure"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's error."""

    rank: int
    time_s: float
    """Seconds since the epoch."""
    message: str


def leave_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Write an error down: autopar's own in its words, others with the line they came from."""
    failure = Failure(rank, time.time(), _message(error))
    draft = folder / f"failure-{rank}.part"
    draft.write_bytes(msgspec.json.encode(failure))
    draft.replace(folder / f"failure-{rank}.json")


def _message(error: BaseException) -> str:
    if isinstance(error, AutoparError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def first_failure(folder: Path) -> Failure | None:
    """The earliest failure in a folder: the others are often its consequences."""
    failures = [
        msgspec.json.decode(path.read_bytes(), type=Failure) for path in folder.glob("failure-*.json")
    ]
    return min(failures, key=lambda failure: failure.time_s, default=None)
