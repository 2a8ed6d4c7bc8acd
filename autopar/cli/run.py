"""``autopar run``: trains a plan's model for a few steps; measured stands beside predicted."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli.console import log, only_results_on_stdout, print_json, print_result
from autopar.cli.opening import open_plan
from autopar.errors import PlanError, PlanMismatchError, TraceError

if TYPE_CHECKING:
    from autopar.plan.schema import Plan

__all__ = ["FAILED_EXIT_CODE", "run_plan"]

FAILED_EXIT_CODE = 1


def run_plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)],
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Processes to start: as many as the plan has ranks.", show_default=False),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="AdamW steps; the first is not timed where there are more.")
    ] = 5,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare loss and every gradient with the single-device model.")
    ] = False,
    compile_program: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="torch.compile for blocks and the loss head: as the plan says, unless given.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Write torch.profiler's trace of one more step of rank 0, for `autopar trace --measured`.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Train a plan's model on this machine with random data: measured beside predicted."""
    plan = open_plan(path)
    _check_processes(plan, nproc)
    _check_place(profile)
    _check_model(plan)
    from autopar.cli.launch import launch
    from autopar.cli.outcome import outcome_json, outcome_table
    from autopar.cli.request import Request

    is_compiled = plan.training.compile if compile_program is None else compile_program
    trace = str(profile.resolve()) if profile else ""
    request = Request(plan, steps=steps, verify=verify, compile=is_compiled, profile=trace)
    log(f"starting {_ranks(plan)} processes of {plan.model.source} for {steps} steps")
    outcome = launch(request, processes=_ranks(plan))
    if json:
        print_json(outcome_json(outcome))
    else:
        print_result(outcome_table(outcome))
    if outcome.verification is not None and not outcome.verification.passed:
        raise typer.Exit(FAILED_EXIT_CODE)


def _ranks(plan: Plan) -> int:
    return max(1, prod(axis.size for axis in plan.mesh))


def _check_processes(plan: Plan, nproc: int | None) -> None:
    """Raises ``PlanMismatchError`` unless the plan's ranks are as many as the processes asked for."""
    if nproc is not None and nproc != _ranks(plan):
        mesh = " × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh) or "one device"
        raise PlanMismatchError(
            f"the plan has {_ranks(plan)} ranks ({mesh}), --nproc asks for {nproc} processes: "
            f"leave --nproc out, or plan for a cluster of {nproc} devices."
        )


def _check_place(profile: Path | None) -> None:
    """Raises ``TraceError`` where no file can be written."""
    if profile is not None and (profile.is_dir() or not profile.parent.is_dir()):
        raise TraceError(f"the trace cannot be written to {profile}: name a file in a folder that is there.")


def _check_model(plan: Plan) -> None:
    """Raises ``ModelError`` or ``PlanMismatchError`` unless the source still makes the plan's model."""
    from autopar.cli.request import build_source
    from autopar.planning import check_model

    if not plan.model.source:
        raise PlanError(
            f"the plan of {plan.model.name} does not say what builds the model, so it cannot be "
            "run from here: plan with `autopar plan MODEL`, or train it with "
            "autopar.parallelize(module, plan=…)."
        )
    log(f"building {plan.model.source} on the meta device")
    with only_results_on_stdout():
        built = build_source(plan, device="meta")
        check_model(plan, built.module, built.args, built.kwargs)
