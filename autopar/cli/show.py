"""``autopar show``: a plan file, read, checked and laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopar.cli.console import print_json, print_result
from autopar.cli.opening import open_plan

__all__ = ["show"]


def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)],
    full: Annotated[bool, typer.Option("--all", help="List every operator, views included.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the plan, its figures made again from its decisions.")
    ] = False,
) -> None:
    """Show what a plan decides and promises. The figures follow from its decisions, edited ones included."""
    plan = open_plan(path)
    if json:
        from autopar.plan.files import format_plan

        print_json(format_plan(plan))
        return
    from autopar.report.text import summary

    print_result(summary(plan, is_full=full))
