"""``python -m autopar.measure -o FILE``: ``autopar profile`` where only torch and numpy are installed.

``--readings-from`` fits a profile to what was measured before, perhaps on another machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autopar.errors import AutoparError
from autopar.measure.fit import fit_profile
from autopar.measure.launcher import is_idle, launched_processes
from autopar.measure.profile import Options, profile_here
from autopar.measure.progress import shown_progress
from autopar.measure.readings import Readings
from cost_models.profile_text import format_profile
from cost_models.profiles import builtin_profile, profile_names

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    if is_idle():
        return 0
    try:
        text, readings = _fitted(options) if options.readings_from else _measured(options)
    except AutoparError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in readings.skipped:
        print(f"not measured: {entry.name}: {entry.reason}", file=sys.stderr)
    print(readings.summary, file=sys.stderr)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def _fitted(options: argparse.Namespace) -> tuple[str, Readings]:
    readings = Readings.read(options.readings_from)
    base = builtin_profile(options.base) if options.base else None
    return format_profile(fit_profile(readings, base, name=options.name)), readings


def _measured(options: argparse.Namespace) -> tuple[str, Readings]:
    chosen = Options(
        options.quick, options.limit_s, options.devices or launched_processes(), options.readings
    )
    with shown_progress() as progress:
        return profile_here(options.device, chosen, progress, name=options.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autopar.measure", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="the profile, TOML (default: stdout)")
    parser.add_argument("--readings", type=Path, help="keep every single reading too, JSON")
    parser.add_argument("--device", default="", help="cuda or cpu (default: the GPU where there is one)")
    parser.add_argument("--devices", type=int, default=0, help="processes between which links are measured")
    parser.add_argument("--quick", action="store_true", help="a third of the grid and of the samples")
    parser.add_argument("--limit-s", type=float, default=240.0, help="start nothing new after this time")
    parser.add_argument("--name", default="", help="name of the profile (default: that of the known device)")
    parser.add_argument("--readings-from", type=Path, help="fit these readings, measure nothing")
    parser.add_argument(
        "--base", choices=profile_names(), help="with --readings-from: profile for what was not measured"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
