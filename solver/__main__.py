"""``python -m solver INSTANCE.json.gz``: solve one problem of the public iopddl format."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from solver.iopddl import InstanceError, read_instance
from solver.methods import solve
from solver.problem import evaluate
from solver.solution import Solution

EXIT_BAD_INPUT = 2

AIM = 0.98
"""Share of the time limit to solve in: the last step may take longer than asked, and the answer is checked."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 with an answer (whatever its status), 2 when there is no problem to solve."""
    start_s = time.perf_counter()
    options = _parser().parse_args(arguments)
    try:
        problem = read_instance(options.instance)
    except InstanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    left_s = AIM * options.time_limit - (time.perf_counter() - start_s)
    found = solve(problem, time_limit_s=max(left_s, 0.0), gap=options.gap)
    peak = None if found.choice is None else evaluate(problem, found.choice).peak_usage
    if options.json:
        print(json.dumps(_as_json(found, peak), indent=2))
    else:
        bound = f"lower bound {found.lower_bound:,.0f}"
        print(f"{found.status}: cost {found.cost:,.0f}, {bound}, {found.wall_s:.1f} s ({found.method})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m solver", description=__doc__)
    parser.add_argument("instance", type=Path, help="an iopddl problem, .json or .json.gz")
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds, reading included (default 300)",
    )
    parser.add_argument("--gap", type=_gap, default=1e-4, metavar="G", help="relative gap (default 1e-4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _gap(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a gap from 0 to below 1")
    return value


def _as_json(found: Solution, peak_usage: float | None) -> dict[str, object]:
    """What JSON can hold: null where a number is infinite."""
    return {
        "status": str(found.status),
        "cost": _finite(found.cost),
        "lower_bound": _finite(found.lower_bound),
        "gap": _finite(found.gap),
        "peak_usage": peak_usage,
        "wall_s": round(found.wall_s, 3),
        "method": found.method,
        "choice": found.choice,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
