"""What a training process is told: the plan, how many steps, and how to rebuild the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autopar.plan.files import read_plan, write_plan
from autopar.plan.schema import Plan
from autopar.plan.text import read_tensor

if TYPE_CHECKING:
    from autopar.models import BuiltModel

__all__ = ["Request", "build_source", "read_request", "write_request"]

SEED = 0
"""Of parameters and inputs; the same on every rank."""


@dataclass(frozen=True, slots=True)
class Request:
    """One run."""

    plan: Plan
    steps: int
    verify: bool
    compile: bool
    profile: str = ""
    """Where the trace of one more step goes; empty for none."""


def write_request(request: Request, folder: Path) -> None:
    write_plan(request.plan, folder / "plan.json")
    options = {
        "steps": request.steps,
        "verify": request.verify,
        "compile": request.compile,
        "profile": request.profile,
    }
    (folder / "request.json").write_bytes(msgspec.json.encode(options))


def read_request(folder: Path) -> Request:
    options = msgspec.json.decode((folder / "request.json").read_bytes())
    return Request(plan=read_plan(folder / "plan.json"), **options)


def build_source(plan: Plan, device: str) -> BuiltModel:
    """The model that the plan names, with inputs of the planned batch. Raises ``ModelError``."""
    from autopar.models import parse_model

    source = parse_model(plan.model.source)
    return source.build(
        global_batch=plan.training.global_batch, seq_len=_seq_len(plan), device=device, seed=SEED
    )


def _seq_len(plan: Plan) -> int | None:
    """Tokens of a sequence, where an input is [batch, sequence] of token numbers."""
    values = [read_tensor(entry.name, entry.tensor) for entry in plan.inputs]
    return next((v.shape[1] for v in values if v.dtype == "int64" and len(v.shape) == 2), None)
