"""``autopar profile``: measures the devices and links at hand and writes a device profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopar.cli.console import log, print_json
from autopar.errors import ClusterError

__all__ = ["profile"]


def _check_place(path: Path | None) -> None:
    """Raises ``ClusterError`` where no file can be written: before minutes of measuring, not after them."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ClusterError(f"the profile cannot be written to {path}: name a file in a folder that is there.")


def profile(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The profile, TOML; stdout if not given."),
    ] = None,
    readings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep every single reading too, as JSON.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu; the GPU where there is one.")] = "",
    devices: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes between which links are measured, and that a CPU's operators share it with; "
            "0: all GPUs, as many as torchrun started, or two.",
        ),
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the grid and of the samples.")] = False,
    name: Annotated[str, typer.Option(help="Name of the profile; by default that of the known device.")] = "",
    limit_s: Annotated[float, typer.Option(help="Start nothing new after this time, in seconds.")] = 240.0,
) -> None:
    """Measure the devices and links at hand: a profile whose every figure says where it comes from.

    It starts the processes that it needs; under torchrun the first one does, and measures for as many.
    """
    from autopar.measure.launcher import is_idle, launched_processes

    if is_idle():
        return
    for path in (output, readings):
        _check_place(path)
    from autopar.measure.profile import Options, profile_here
    from autopar.measure.progress import shown_progress

    options = Options(quick, limit_s, devices or launched_processes(), readings)
    with shown_progress() as progress:
        text, taken = profile_here(device, options, progress, name=name)
    for entry in taken.skipped:
        log(f"not measured: {entry.name}: {entry.reason}")
    if output is None:
        print_json(text)
    else:
        output.write_text(text, encoding="utf-8")
        log(f"{output}: {taken.summary}")
