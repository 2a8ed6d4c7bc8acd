"""One process of a run: does its jobs one after the other, and rank 0 appends a line for each to a file.

    torchrun --nproc-per-node N -m benchmarks.side_by_side.worker JOBS.json

Needs torch and numpy, not the planner. On one device an entry that fails (for want of memory, say) is written down
and the next one starts. On several, other ranks may be waiting for the one that failed: the process ends, and
whoever launched it goes on with the jobs that are left.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autopar.runtime.mesh import join_world

from .contestants import built_model, trainer_of
from .contests import INDEX
from .text import text_batch
from .timing import everywhere, profiled_step, release, timed_steps, wait

__all__ = ["Job", "Jobs", "main"]


@dataclass(frozen=True, slots=True)
class Job:
    """One entry to build, and what to do with it."""

    contest: int
    entry: int
    round: int
    kind: str = "time"
    """``time``, or ``losses``."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """What a launch is asked for."""

    plans: str
    """Folder."""
    output: str
    """File that a line of JSON is appended to for each job."""
    device: str
    warm_up: int
    steps: int
    ends_at_s: float
    """Of the Unix clock: no job starts after it."""
    traces: str
    """Folder for a trace of one step of each entry's first round; empty for none."""
    jobs: list[Job]


def main(path: Path) -> None:
    """Do the jobs of a file."""
    data = json.loads(path.read_text())
    asked = Jobs(**{**data, "jobs": [Job(**job) for job in data["jobs"]]})
    device = join_world(asked.device)
    index = json.loads((Path(asked.plans) / INDEX).read_text())
    failed: set[tuple[int, int]] = set()
    for job in asked.jobs:
        if everywhere(time.time() > asked.ends_at_s)[0]:
            break
        entry = (job.contest, job.entry)
        if entry not in failed and not _succeeds(job, asked, index, device):
            failed.add(entry)
        release(device)
    if dist.is_initialized():
        dist.destroy_process_group()


def _succeeds(job: Job, asked: Jobs, index: dict[str, Any], device: torch.device) -> bool:
    """Does a job, and writes down what came of it."""
    contest = index["contests"][job.contest]
    row = {**asdict(job), "name": contest["entries"][job.entry]["name"], "in": contest["name"]}
    started_s = time.perf_counter()
    try:
        found = (_time if job.kind == "time" else _losses)(job, asked, index, device)
        _append(asked, row | found | {"wall_s": time.perf_counter() - started_s})
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
        _append(asked, row | {"error": reason, "wall_s": time.perf_counter() - started_s}, anyone=True)
        if dist.is_initialized():
            sys.stderr.flush()
            os._exit(1)
        return False
    return True


def _append(asked: Jobs, row: dict[str, Any], *, anyone: bool = False) -> None:
    if anyone or not dist.is_initialized() or dist.get_rank() == 0:
        with open(asked.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(_line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    """A row for people."""
    figure = row.get("error", "")
    if "steps_s" in row:
        figure = f"{statistics.median(row['steps_s']) * 1e3:.1f} ms, peak {row['peak_bytes'] / 1e9:.2f} GB"
    if "losses" in row:
        figure = f"loss {row['losses'][0]:.4f} → {row['losses'][-1]:.4f}"
    return f"{row['in']}, {row['name']}, round {row['round'] + 1}: {figure} ({row['wall_s']:.1f} s)"


def _time(job: Job, asked: Jobs, index: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Builds an entry, warms it up and times it on one random batch."""
    contest = index["contests"][job.contest]
    before_bytes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    started_s = time.perf_counter()
    built = built_model(contest, device)
    trainer = trainer_of(contest["entries"][job.entry], built, index, Path(asked.plans))
    wait(device)
    built_s = time.perf_counter()
    first = trainer.step(*built.args)
    wait(device)
    first_s = time.perf_counter() - built_s
    for _ in range(asked.warm_up - 1):
        trainer.step(*built.args)
    found = timed_steps(lambda: trainer.step(*built.args), asked.steps, device)
    found |= {"build_s": built_s - started_s, "first_step_s": first_s, "before_bytes": before_bytes}
    if asked.traces and job.round == 0:
        path = Path(asked.traces) / f"{job.contest}-{job.entry}.json.gz"
        found["kernels"] = profiled_step(lambda: trainer.step(*built.args), path, device)
    last = trainer.step(*built.args)
    return found | {"first_loss": trainer.mean(first), "last_loss": trainer.mean(last)}


def _losses(job: Job, asked: Jobs, index: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Trains an entry on real text and writes down the loss of every step."""
    contest = index["contests"][job.contest]
    built = built_model(contest, device)
    trainer = trainer_of(contest["entries"][job.entry], built, index, Path(asked.plans))
    losses = []
    for step in range(contest["loss_steps"]):
        batch = text_batch(step, contest["global_batch"], contest["seq_len"])
        losses.append(trainer.step(*(tensor.to(device) for tensor in batch)))
    return {"losses": [trainer.mean(loss) for loss in losses]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
