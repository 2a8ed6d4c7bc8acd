"""Starting the training processes with torchrun, and what they leave: an outcome, or the first error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from autopar.cli.console import log
from autopar.cli.failure import first_failure
from autopar.cli.outcome import Outcome
from autopar.cli.request import Request, write_request
from autopar.errors import LaunchError

__all__ = ["OUTCOME_FILE", "launch"]

OUTCOME_FILE = "outcome.json"
STOP_S = 10.0
"""How long torchrun may take to end its workers before it is killed."""
LOG_LINES = 12
"""Of torchrun's and the workers' stderr, shown when a process died without a word."""


def launch(request: Request, processes: int) -> Outcome:
    """Run ``autopar.cli.worker`` in ``processes`` processes on this machine and return what rank 0 reports.

    What the workers print is logged. Raises ``LaunchError`` with the error of the first rank that failed.
    """
    with tempfile.TemporaryDirectory(prefix="autopar-run-") as name:
        folder = Path(name)
        write_request(request, folder)
        exit_code = _run(_command(processes, folder), _environment(processes), folder / "stderr.txt")
        if exit_code:
            raise LaunchError(_explain(folder, exit_code))
        return msgspec.json.decode((folder / OUTCOME_FILE).read_bytes(), type=Outcome)


def _command(processes: int, folder: Path) -> list[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return [*launcher, "-m", "autopar.cli.worker", str(folder)]


def _environment(processes: int) -> dict[str, str]:
    """This process's, with autopar importable and the cores shared out among the ranks."""
    package_home = str(Path(__file__).resolve().parents[2])
    paths = [package_home, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _run(command: list[str], environment: dict[str, str], log_path: Path) -> int:
    """Exit code of a command whose stdout is logged line by line; it never outlives this call."""
    with (
        log_path.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as process,
        _stopped_at_the_end(process),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log(line.rstrip())
        return process.wait()


@contextmanager
def _stopped_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process, and with it torchrun's workers, however the block is left: SIGTERM included."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _explain(folder: Path, exit_code: int) -> str:
    failure = first_failure(folder)
    if failure is not None:
        return f"rank {failure.rank} failed: {failure.message}"
    lines = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
    return (
        f"the training processes ended with exit code {exit_code} and no error of their own: one may have "
        f"been killed, for want of memory for instance. Last lines of their stderr:\n{tail}"
    )
