"""One training process of ``autopar run``: ``python -m autopar.cli.worker FOLDER`` under torchrun.

It reads the request in FOLDER, trains, and rank 0 leaves ``outcome.json`` there; a rank that fails leaves
``failure-RANK.json``.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from autopar.cli.failure import leave_failure
from autopar.cli.launch import OUTCOME_FILE
from autopar.cli.measure import train
from autopar.cli.outcome import Figures, Outcome
from autopar.cli.request import Request, read_request
from autopar.cli.verify import verify
from autopar.errors import LaunchError
from autopar.plan.schema import Plan
from autopar.report.flops import hardware_flops
from autopar.runtime.mesh import join_world

__all__ = ["main"]


def main(folder: Path) -> None:
    """Do this rank's part; on an error leave it in the folder and end the process at once."""
    rank = int(os.environ["RANK"])
    try:
        outcome = _work(read_request(folder))
        if rank == 0:
            (folder / OUTCOME_FILE).write_bytes(msgspec.json.encode(outcome))
        dist.destroy_process_group()
    except BaseException as error:
        leave_failure(folder, rank, error)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # threads of a communication library that waits for other ranks must not hold us back


def _work(request: Request) -> Outcome:
    device_type = _device_type(request)
    device = join_world(device_type)
    trained = train(request, device)
    verification = verify(request, device) if request.verify else None
    predicted = request.plan.predicted
    fullest = max(predicted.memory, key=lambda memory: sum(msgspec.to_builtins(memory).values()))
    return Outcome(
        predicted=_figures(
            request.plan, predicted.step_time_s, predicted.peak_memory_bytes, msgspec.to_builtins(fullest)
        ),
        measured=_figures(request.plan, trained.step_time_s, trained.peak_memory_bytes, trained.memory_bytes),
        verification=verification,
        losses=trained.losses,
        processes=dist.get_world_size(),
        device=torch.cuda.get_device_name(device) if device_type == "cuda" else "cpu",
        memory_measure=trained.memory_measure,
    )


def _figures(plan: Plan, step_s: float, peak_bytes: int, memory_bytes: dict[str, int]) -> Figures:
    mfu = plan.predicted.mfu * plan.predicted.step_time_s / step_s
    hfu = mfu * hardware_flops(plan) / plan.model.flops if plan.model.flops else 0.0
    return Figures(step_s, plan.training.tokens / step_s, mfu, hfu, peak_bytes, memory_bytes)


def _device_type(request: Request) -> str:
    """GPUs where there are any. Raises ``LaunchError`` where there are fewer than ranks."""
    if not torch.cuda.is_available():
        return "cpu"
    ranks, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if devices < ranks:
        raise LaunchError(
            f"the plan for {request.plan.cluster.name} has {ranks} ranks, this machine {devices} GPUs: "
            f"plan for a cluster of {devices}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on the CPU."
        )
    return "cuda"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
