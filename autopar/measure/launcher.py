"""What a launcher says: measuring starts processes of its own, so the first of the launcher's does all the work."""

from __future__ import annotations

import os

__all__ = ["is_idle", "launched_processes"]


def launched_processes() -> int:
    """Processes that ``torchrun`` started on this machine; 0 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0"))


def is_idle() -> bool:
    """True in all of them but the first."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
