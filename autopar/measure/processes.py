"""One process per device of this machine, in a world of their own: what they measure between them, or all at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from autopar.errors import LaunchError
from autopar.measure.progress import Progress

__all__ = ["run_in_processes", "threads_of"]

POLL_S = 0.2
"""How often the progress of rank 0 is passed on."""

Job = Callable[..., Any]
"""``job(device, progress, *arguments)``, a function of a module: every rank calls it."""


def run_in_processes(
    job: Job, arguments: tuple[Any, ...], *, device_type: str, processes: int, progress: Progress
) -> Any:
    """What ``job`` returns on rank 0. Processes speak NCCL on GPUs, elsewhere gloo, and end here.

    Raises LaunchError when a process fails.
    """
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        passed = (device_type, processes, threads_of(processes), folder, queue, job, arguments)
        try:
            context = multiprocessing.spawn(_rank, args=passed, nprocs=processes, join=False)
            while not context.join(timeout=POLL_S):
                _pass_on(queue, progress)
        except Exception as error:
            raise LaunchError(f"measuring in {processes} processes failed: {error}") from error
        _pass_on(queue, progress)
        return torch.load(Path(folder) / "result.pt", weights_only=False)


def threads_of(processes: int) -> int:
    """Threads of each of so many processes on this machine's cores, as ``autopar run`` gives them."""
    return min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // processes))


def _pass_on(queue: Any, progress: Progress) -> None:
    while not queue.empty():
        progress(*queue.get())


def _rank(
    rank: int,
    device_type: str,
    processes: int,
    threads: int,
    folder: str,
    queue: Any,
    job: Job,
    arguments: tuple[Any, ...],
) -> None:
    """One process."""
    is_cuda = device_type == "cuda"
    device = torch.device(device_type, rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(threads)
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=dist.FileStore(str(Path(folder) / "store"), processes),
        rank=rank,
        world_size=processes,
        device_id=device if is_cuda else None,
    )

    def progress(what: str, done: int, total: int) -> None:
        if rank == 0:
            queue.put((what, done, total))

    try:
        result = job(device, progress, *arguments)
        if rank == 0:
            torch.save(result, Path(folder) / "result.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
