"""A pool of gloo processes on loopback that run functions sent to them, started once for many tests.

    with GlooPool(4) as pool:
        losses = pool.run(train_step, seed=0)       # one result per rank

A function is a module-level function (it travels by name); it runs on every rank of the default process
group at the same time. When a rank raises, its traceback is reported as ``RankFailedError`` and the pool
starts afresh, because the other ranks may be waiting inside a collective; a hang ends the same way.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["GlooPool", "RankFailedError"]

START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 120.0
GRACE_S = 5.0
"""How long the other ranks may go on after one has failed, to report failures of their own."""


class RankFailedError(AssertionError):
    """A function raised on some rank, died, or did not finish in time."""


class GlooPool:
    """``size`` processes of one gloo process group; starts at the first ``run``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> GlooPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = RUN_TIMEOUT_S, **keywords: Any
    ) -> list[Any]:
        """Run ``function(*arguments, **keywords)`` on every rank and return the results in rank order.

        Raises RankFailedError with the tracebacks of the ranks that failed.
        """
        if not self._processes:
            self._start()
        work = pickle.dumps((function, arguments, keywords))
        for pipe in self._pipes:
            pipe.send_bytes(work)
        answers = self._collect(timeout_s)
        failures = [
            f"rank {rank}: {text}" for rank, (kind, text) in sorted(answers.items()) if kind == "error"
        ]
        silent = sorted(set(range(self.size)) - answers.keys())
        if failures or silent:
            self.stop()
            waiting = f"ranks {silent} gave no answer within {timeout_s:.0f} s" if silent else ""
            raise RankFailedError("\n".join([f"{function.__name__} failed", *failures, waiting]))
        return [answers[rank][1] for rank in range(self.size)]

    def stop(self) -> None:
        """End the processes; the next ``run`` starts new ones."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(b"")
            pipe.close()
        for process in self._processes:
            process.join(timeout=1.0)
            if process.is_alive():
                process.kill()
                process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="autopar_gloo_")
        meeting_file = os.path.join(self._folder.name, "store")  # a file store needs no port
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.size, meeting_file), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        answers = self._collect(START_TIMEOUT_S)
        if len(answers) < self.size or any(kind == "error" for kind, _ in answers.values()):
            self.stop()
            raise RankFailedError(f"the {self.size} gloo processes did not start: {answers}")

    def _collect(self, timeout_s: float) -> dict[int, tuple[str, Any]]:
        """Return each rank's answer, until all have answered, time is up, or one failed a while ago."""
        deadline = time.monotonic() + timeout_s
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < self.size and (remaining_s := deadline - time.monotonic()) > 0:
            pending = {self._pipes[rank]: rank for rank in range(self.size) if rank not in answers}
            for pipe in wait(list(pending), timeout=remaining_s):
                rank = pending[pipe]
                try:
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    answers[rank] = ("error", "the process died")
                if answers[rank][0] == "error":
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers


def _serve(pipe: Connection, rank: int, size: int, meeting_file: str) -> None:
    """Join the process group, then run what arrives until nothing is sent or the parent is gone."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(meeting_file, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=RUN_TIMEOUT_S),
    )
    pipe.send_bytes(pickle.dumps(("ready", rank)))
    with contextlib.suppress(EOFError, OSError):
        while work := pipe.recv_bytes():
            pipe.send_bytes(_answer(work))


def _answer(work: bytes) -> bytes:
    """Run pickled work; plain pickle copies tensors, so nothing is shared between processes."""
    try:
        function, arguments, keywords = pickle.loads(work)
        return pickle.dumps(("result", function(*arguments, **keywords)))
    except BaseException:
        return pickle.dumps(("error", traceback.format_exc()))
