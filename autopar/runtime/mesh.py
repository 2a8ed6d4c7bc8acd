"""The processes that run a program, as a mesh of named axes."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autopar.errors import PlanMismatchError
from autopar.runtime.axis import Axis, axes_of

__all__ = ["PIPELINE", "Mesh", "init_mesh", "join_world"]

PIPELINE = "pp"
"""The axis of pipeline stages, outermost; parameters and activations are laid out along the others."""
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""Communication library by device type."""

SETTLE_S = 0.1
"""Seconds for gloo's threads to drop what the last collectives held. A backward leaves Python objects with them
(``torch.autograd.graph`` stashes its context); dropping these takes the interpreter's lock, and a thread that asks
for it while the interpreter shuts down ends the process with SIGABRT (torch 2.13: 4 of 10 scripts whose last
statement was a backward)."""


@dataclass(frozen=True)
class Mesh:
    """A mesh as this rank sees it."""

    axes: dict[str, Axis]
    """Every axis by name, outermost first; also those of size 1."""
    device: torch.device
    """Where this rank computes."""
    device_mesh: DeviceMesh | None = field(repr=False, default=None)
    """torch's mesh of the axes of more than one rank; None where there is none, as in a single process."""

    def wide(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` whose axis has more than one rank, outermost first."""
        wanted = set(names)
        return tuple(name for name, axis in self.axes.items() if name in wanted and axis.size > 1)


def init_mesh(sizes: Mapping[str, int], device_type: str | None = None) -> Mesh:
    """Lay the running processes out on axes of the given sizes, outermost first.

    Joins the world of the launcher (``torchrun``) where no process group exists yet. Without a launcher it
    is one process, which needs no process group: every axis must then have size 1. ``device_type`` is
    ``cpu`` or ``cuda``; CUDA where it is available, unless said.

    Raises PlanMismatchError when the axes do not multiply to the number of processes.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = join_world(device_type)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if prod(sizes.values()) != processes:
        axes = " × ".join(f"{name} {size}" for name, size in sizes.items()) or "one device"
        needed = prod(sizes.values())
        raise PlanMismatchError(
            f"the program is laid out for {needed} processes ({axes}), and {processes} run. "
            f"Start it with `torchrun --nproc-per-node {needed}`, or make a plan for {processes} devices."
        )
    wide = {name: size for name, size in sizes.items() if size > 1}
    if not wide:
        return Mesh({name: Axis(name, 1, 0, "") for name in sizes}, device)
    device_mesh = init_device_mesh(device_type, tuple(wide.values()), mesh_dim_names=tuple(wide))
    found = axes_of(device_mesh)
    return Mesh({name: found.get(name, Axis(name, 1, 0, "")) for name in sizes}, device, device_mesh)


def join_world(device_type: str) -> torch.device:
    """Join the launcher's process group, if there is a launcher, and return this rank's device."""
    device = torch.device(device_type)
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        dist.init_process_group(BACKENDS[device_type], device_id=device if device_type == "cuda" else None)
        if device_type == "cpu":
            atexit.register(time.sleep, SETTLE_S)
    return device
