"""autopar's plans and training by hand, timed in turn on this machine's devices, predicted beside measured.

    python benchmarks/run.py MODEL CLUSTER --global-batch 8 --seq-len 4096 -o RESULTS
    python benchmarks/run.py CONTESTS.toml CLUSTER -o RESULTS
    python benchmarks/run.py MODEL CLUSTER … --plan-only --plans PLANS     # anywhere: a laptop
    python benchmarks/run.py --plans PLANS -o RESULTS                      # there: torch and numpy are enough
    python benchmarks/run.py --plans PLANS -o RESULTS --report             # again from the rows, nothing is run

What competes on a MODEL: the plan that is chosen without hints, plans with parallelism or recomputation pinned, and
the ways to train by hand (``benchmarks/by_hand``). A file says it by itself: see ``two_gpus.toml``. A program that
two pins lead to is timed once. Entries that do not fit are reported as such.

RESULTS gets ``rows.jsonl`` (a line as each entry is done; run again, what is there is not measured again),
``results.json``, ``results.md``, with ``--profile`` ``traces/CONTEST-ENTRY.json.gz`` (torch.profiler, for
``autopar trace PLANS/CONTEST-ENTRY.json --measured``), and ``losses.png`` where losses were compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side.contests import Contest, contest_of, read_contests
from benchmarks.side_by_side.report import markdown, results


def main() -> None:
    options = _options()
    plans = options.plans or options.output / "plans"
    if options.model is not None:
        _plan(options, plans)
    if options.plan_only:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.report:
        _run(options, plans)
    _report(options, plans)


def _plan(options: argparse.Namespace, plans: Path) -> None:
    from benchmarks.side_by_side.planning import make_plans

    make_plans(_contests(options), options.cluster, options.precision, options.compile, plans)


def _contests(options: argparse.Namespace) -> list[Contest]:
    if options.model.endswith(".toml"):
        return read_contests(Path(options.model))
    from autopar.clusters import cluster_named

    cluster = cluster_named(options.cluster)
    devices = cluster.nodes * cluster.devices_per_node
    return [contest_of(options.model, devices, options.global_batch, options.seq_len)]


def _run(options: argparse.Namespace, plans: Path) -> None:
    from benchmarks.side_by_side.launch import Asked, run_plans

    asked = Asked(
        plans,
        options.output,
        options.device,
        options.rounds,
        options.steps,
        options.warm_up,
        options.limit_s,
        options.only,
        options.profile,
    )
    circumstances = _circumstances(options)
    (options.output / "circumstances.json").write_text(json.dumps(circumstances, indent=1) + "\n")
    run_plans(asked)


def _report(options: argparse.Namespace, plans: Path) -> None:
    rows = [json.loads(line) for line in (options.output / "rows.jsonl").read_text().splitlines()]
    circumstances = json.loads((options.output / "circumstances.json").read_text())
    found = results(plans, rows, circumstances)
    (options.output / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (options.output / "results.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    if any("losses" in entry for contest in found["contests"] for entry in contest["entries"]):
        from benchmarks.side_by_side.losses_figure import draw_losses

        draw_losses(found, options.output / "losses.png")


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    import torch

    is_cuda = options.device == "cuda"
    return {
        "hardware": torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine(),
        "driver": _driver() if is_cuda else "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if is_cuda else "none",  # type: ignore[attr-defined]
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commands": [f"python {' '.join(sys.argv)}"],
        "rounds": options.rounds,
        "steps": options.steps,
        "warm_up": options.warm_up,
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0].strip()


def _options() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="as for `autopar plan`, or a TOML file of contests")
    parser.add_argument("cluster", nargs="?", help="as for `autopar plan`: h200:2")
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="on GPUs, unless given")
    parser.add_argument("--plan-only", action="store_true", help="make plans and programs, run nothing")
    parser.add_argument("--plans", type=Path, help="folder of plans; RESULTS/plans unless given")
    parser.add_argument("-o", "--output", type=Path, help="folder of results")
    parser.add_argument("--only", default="", help="contests whose name contains this")
    parser.add_argument("--rounds", type=int, default=2, help="times that each entry has its turn")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="start no entry after this time")
    parser.add_argument("--profile", action="store_true", help="a trace of one step of every entry")
    parser.add_argument("--report", action="store_true", help="write the report again, run nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if (options.model is None) != (options.cluster is None):
        parser.error("MODEL and CLUSTER go together")
    if options.model is None and options.plans is None:
        parser.error("name a MODEL and a CLUSTER, or a folder of --plans")
    if options.output is None and (options.plans is None or not options.plan_only):
        parser.error("-o RESULTS says where results go")
    return options


if __name__ == "__main__":
    main()
