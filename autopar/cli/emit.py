"""``autopar emit``: a plan's program as a folder of two files, all or nothing."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated

import typer

from autopar.cli.console import log
from autopar.cli.folders import write_folder
from autopar.cli.opening import open_plan

__all__ = ["emit"]


def emit(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for program.py and plan.json.", show_default=False)
    ],
) -> None:
    """Write the program of a plan as readable PyTorch source."""
    plan = open_plan(path)
    from autopar.plan.files import format_plan
    from autopar.planning import generate_program

    write_folder(output, {"program.py": generate_program(plan), "plan.json": format_plan(plan)})
    ranks = max(1, prod(axis.size for axis in plan.mesh))
    program = output / "program.py"
    log(f"wrote {program} and {output / 'plan.json'}")
    log(f"run it: torchrun --nproc-per-node {ranks} {program}" if ranks > 1 else f"run it: python {program}")
