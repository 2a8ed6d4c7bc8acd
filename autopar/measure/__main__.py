"""``python -m autopar.measure -o FILE``: measures the devices and links at hand and writes a profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from autopar.errors import AutoparError
from autopar.measure.fit import fit_profile
from autopar.measure.profile import Options, base_profile, take_readings
from autopar.measure.progress import shown_progress
from autopar.measure.readings import Readings
from cost_models.profile_text import format_profile
from cost_models.profiles import builtin_profile, profile_names

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    device = (
        torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    )
    try:
        readings = (
            Readings.read(options.readings_from) if options.readings_from else _measured(device, options)
        )
    except AutoparError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = builtin_profile(options.base) if options.base else base_profile(device)
    text = format_profile(fit_profile(readings, base, name=options.name))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
        print(f"{options.output}: {_summary(readings)}", file=sys.stderr)
    else:
        print(text)
    return 0


def _measured(device: torch.device, options: argparse.Namespace) -> Readings:
    chosen = Options(options.quick, options.limit_s, options.devices, options.readings)
    with shown_progress() as progress:
        return take_readings(device, chosen, progress)


def _summary(readings: Readings) -> str:
    skipped = "".join(f"\n  skipped {entry.name}: {entry.reason}" for entry in readings.skipped)
    counts = (
        f"{len(readings.operators)} operators, {len(readings.host)} host times, {len(readings.links)} links"
    )
    return f"{counts} in {readings.wall_s:.0f} s on {readings.facts.name}{skipped}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autopar.measure", description=__doc__)
    is_cuda = torch.cuda.is_available()
    parser.add_argument("-o", "--output", type=Path, help="the profile, TOML (default: stdout)")
    parser.add_argument("--readings", type=Path, help="keep what was measured, JSON")
    parser.add_argument("--readings-from", type=Path, help="fit these readings, measure nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_cuda else "cpu")
    parser.add_argument("--devices", type=int, default=0, help="processes between which links are measured")
    parser.add_argument("--quick", action="store_true", help="a third of the grid and of the samples")
    parser.add_argument("--limit-s", type=float, default=240.0, help="start nothing new after this time")
    parser.add_argument("--base", choices=profile_names(), help="profile for what is not measured")
    parser.add_argument("--name", default="", help="name of the profile (default: that of the base)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
