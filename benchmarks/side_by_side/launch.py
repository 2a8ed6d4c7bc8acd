"""Starts the processes that time a folder of plans, and starts them again after an entry has brought them down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .contests import INDEX
from .worker import Job, Jobs

__all__ = ["Asked", "run_plans"]

GRACE_S = 60.0
"""How long the last entry may take after no other may start."""
STOP_S = 15.0
"""How long torchrun may take to end its workers."""
STUCK = 124
"""Exit code of processes that took too long."""
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Asked:
    """How plans are to be timed."""

    plans: Path
    output: Path
    """Folder of results: ``rows.jsonl`` grows as they come."""
    device: str
    rounds: int
    steps: int
    warm_up: int
    limit_s: float
    only: str = ""
    """Contests whose name contains this."""
    is_profiled: bool = False


def run_plans(asked: Asked) -> list[dict[str, Any]]:
    """Times every entry of every contest in turn, round after round, and returns one row for each job.

    Rows that the folder of results has already are not measured again.
    """
    index = json.loads((asked.plans / INDEX).read_text())
    asked.output.mkdir(parents=True, exist_ok=True)
    rows_file = asked.output / "rows.jsonl"
    ends_at_s = time.time() + asked.limit_s
    for group in _launches(index, asked):
        while time.time() < ends_at_s:
            left = _left(group, _read(rows_file))
            if not left or not _launch(left, index, asked, rows_file, ends_at_s):
                break
    return _read(rows_file)


def _launches(index: dict[str, Any], asked: Asked) -> list[list[Job]]:
    """Jobs by launch. On several devices each contest has its own, for process groups pile up."""
    groups = [
        _jobs(contest, place, asked.rounds)
        for place, contest in enumerate(index["contests"])
        if asked.only in contest["name"]
    ]
    return [[job for group in groups for job in group]] if index["devices"] == 1 else groups


def _jobs(contest: dict[str, Any], place: int, rounds: int) -> list[Job]:
    """Each round takes the entries in turn, every other round backwards; then the losses."""
    entries = [
        number
        for number, entry in enumerate(contest["entries"])
        if "error" not in entry and not entry.get("same_as")
    ]
    timed = [
        Job(place, entry, turn) for turn in range(rounds) for entry in (entries, entries[::-1])[turn % 2]
    ]
    losses = [Job(place, entry, 0, "losses") for entry in entries] if contest["loss_steps"] else []
    return [*timed, *losses]


def _left(jobs: Sequence[Job], rows: Iterable[dict[str, Any]]) -> list[Job]:
    """Jobs without a row, but those of entries that have failed."""
    rows = list(rows)
    done = {(row["contest"], row["entry"], row["round"], row["kind"]) for row in rows}
    failed = {(row["contest"], row["entry"]) for row in rows if "error" in row}
    return [
        job
        for job in jobs
        if (job.contest, job.entry, job.round, job.kind) not in done
        and (job.contest, job.entry) not in failed
    ]


def _launch(jobs: list[Job], index: dict[str, Any], asked: Asked, rows_file: Path, ends_at_s: float) -> bool:
    """Runs the processes to their end; whether it is worth going on with what is left."""
    before = len(_read(rows_file))
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as name:
        file = Path(name) / "jobs.json"
        traces = str(asked.output / "traces") if asked.is_profiled else ""
        request = Jobs(
            str(asked.plans),
            str(rows_file),
            asked.device,
            asked.warm_up,
            asked.steps,
            ends_at_s,
            traces,
            jobs,
        )
        file.write_text(json.dumps(asdict(request)))
        code = _run(_command(index["devices"], file), ends_at_s + GRACE_S)
    rows = _read(rows_file)
    if code and not any("error" in row for row in rows[before:]):
        first = next(iter(_left(jobs, rows)), None)
        if first is not None:  # it was killed before it could say anything
            entry = index["contests"][first.contest]["entries"][first.entry]
            lost = asdict(first) | {
                "name": entry["name"],
                "in": index["contests"][first.contest]["name"],
                "error": f"the processes ended with code {code}",
            }
            with rows_file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(lost, ensure_ascii=False) + "\n")
    return code != 0


def _run(command: list[str], ends_at_s: float) -> int:
    """The exit code of a command, which is ended when it takes too long: ranks may be waiting for each other."""
    process = subprocess.Popen(command, env=_environment())
    try:
        return process.wait(timeout=ends_at_s - time.time())
    except subprocess.TimeoutExpired:
        return STUCK
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _command(devices: int, file: Path) -> list[str]:
    module = ["-m", "benchmarks.side_by_side.worker", str(file)]
    if devices == 1:
        return [sys.executable, *module]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return [sys.executable, *launcher, *module]


def _environment() -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _read(rows_file: Path) -> list[dict[str, Any]]:
    if not rows_file.exists():
        return []
    return [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
