"""The command ``autopar``: its subcommands, and what becomes of errors.

Nothing here imports torch, so that ``--help`` and misspelt options answer at once.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Sequence
from typing import NoReturn

import typer

from autopar.cli.console import print_error
from autopar.cli.emit import emit
from autopar.cli.plan import plan
from autopar.cli.profile import profile
from autopar.cli.run import run_plan
from autopar.cli.show import show
from autopar.cli.trace import trace
from autopar.errors import AutoparError

__all__ = ["ERROR_EXIT_CODE", "app", "run"]

ERROR_EXIT_CODE = 2
"""For everything that is wrong with what the user gave; 1 is a verification that failed."""
OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Instead of 700. torch and the graphs that plans are made from are many objects that stay: looking through them
again and again for garbage took 10 % of the time to import torch, 16 % of that to capture llama3-405b."""

app = typer.Typer(
    name="autopar",
    help="The auto-parallelization compiler for PyTorch: a module and a cluster in, a sharded program out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan)
app.command("show")(show)
app.command("emit")(emit)
app.command("run")(run_plan)
app.command("trace")(trace)
app.command("profile")(profile)


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command (``sys.argv`` by default) and exit: 0, 1 for a failed verification, 2 for an error."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)  # a last look for garbage, among all of torch, would take a second
    try:
        app(args=None if arguments is None else list(arguments), prog_name="autopar")
    except AutoparError as error:
        print_error(str(error))
        raise SystemExit(ERROR_EXIT_CODE) from None
    raise SystemExit(0)


if __name__ == "__main__":
    run()
