"""The running processes: how many there are, and one rank's work handed to all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from autopar.errors import AutoparError

__all__ = ["computed_once", "node_count", "world_size"]

T = TypeVar("T")


def world_size() -> int:
    """Processes of the running world: the process group's, the launcher's, or one."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def node_count() -> int:
    """Machines of the running world, as the launcher says: torchrun runs one agent on each."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def computed_once(compute: Callable[[], T]) -> T:
    """``compute()`` of rank 0, on every rank. An error that it raises is raised on every rank.

    The result must be picklable; needs an initialised process group where there is more than one process.
    """
    if world_size() == 1:
        return compute()
    outcome: list[tuple[T | None, AutoparError | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            outcome = [(compute(), None)]
        except AutoparError as error:
            outcome = [(None, error)]
        except BaseException as error:
            outcome = [(None, AutoparError(f"planning failed on rank 0: {type(error).__name__}: {error}"))]
            dist.broadcast_object_list(outcome)
            raise
    dist.broadcast_object_list(outcome)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]
