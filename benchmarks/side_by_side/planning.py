"""Plans, programs and predictions made ahead, in a folder that a machine without the planner can run."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autopar._version import __version__
from autopar.clusters import cluster_named
from autopar.errors import AutoparError
from autopar.models import BuiltModel, parse_model
from autopar.plan.files import write_plan
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, generate_program, plan_model
from cost_models.cluster import Cluster

from .contests import INDEX, Contest

__all__ = ["make_plans"]

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def make_plans(
    contests: Sequence[Contest], cluster_name: str, precision: str, compiles: bool | None, folder: Path
) -> None:
    """Writes ``index.json``, and the plan and the program of every contestant that can be planned."""
    cluster = cluster_named(cluster_name)
    folder.mkdir(parents=True, exist_ok=True)
    planned = [
        _contest(contest, place, cluster, PlanOptions(precision=precision, compile=compiles), folder)
        for place, contest in enumerate(contests)
    ]
    index = {
        "cluster": cluster_name,
        "device": cluster.device.name,
        "devices": cluster.nodes * cluster.devices_per_node,
        "memory_bytes": cluster.device.memory_bytes,
        "peak_flops_per_s": cluster.device.peak(DTYPES[precision]),
        "precision": precision,
        "compiles": cluster.device.kind == "cuda" if compiles is None else compiles,
        "planned": datetime.date.today().isoformat(),
        "autopar": __version__,
        "contests": planned,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _contest(
    contest: Contest, place: int, cluster: Cluster, options: PlanOptions, folder: Path
) -> dict[str, Any]:
    built = parse_model(contest.model).build(global_batch=contest.global_batch, seq_len=contest.seq_len)
    entries = list(_plans(contest, place, built, cluster, options, folder))
    by_hand = [{"name": f"by hand: {text}", "by_hand": text} for text in contest.by_hand]
    return {
        "name": contest.name,
        "model": contest.model,
        "global_batch": contest.global_batch,
        "seq_len": contest.seq_len,
        "tokens": built.tokens,
        "flops": next((entry["flops"] for entry in entries if "flops" in entry), 0.0),
        "loss_steps": contest.loss_steps,
        "entries": [*entries, *by_hand],
    }


def _plans(
    contest: Contest,
    place: int,
    built: BuiltModel,
    cluster: Cluster,
    options: PlanOptions,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """One entry for each pin; a program that another entry has already is named, not written again."""
    known: dict[str, str] = {}
    for number, pins in enumerate(contest.pins):
        name = f"plan: {pins}" if pins else "chosen"
        print(f"{contest.name}, {name}", flush=True)
        started_s = time.perf_counter()
        try:
            asked = PlanOptions(
                pins, None, options.optimizer, options.precision, contest.model, compile=options.compile
            )
            plan = plan_model(built.module, built.args, built.kwargs, cluster, asked)
        except AutoparError as error:
            yield {"name": name, "pins": pins, "error": f"{type(error).__name__}: {error}"}
            continue
        planning_s = time.perf_counter() - started_s
        program = generate_program(plan)
        file = f"{place}-{number}"
        digest = hashlib.sha256(program.encode()).hexdigest()
        write_plan(plan, folder / f"{file}.json")
        (folder / f"{file}.py").write_text(program, encoding="utf-8")
        yield {
            "name": name,
            "pins": pins,
            "program": f"{file}.py",
            "plan": f"{file}.json",
            "same_as": known.setdefault(digest, name) if digest in known else None,
            "what": _what(plan),
            "planning_s": planning_s,
            "flops": plan.model.flops,
            "predicted": _predicted(plan),
        }
        known.setdefault(digest, name)


def _what(plan: Plan) -> str:
    """``dp_shard 2, zero 2, recompute full, 4 microbatches``."""
    axes = [f"{axis.axis} {axis.size}" for axis in plan.mesh] or ["one device"]
    zero = {stage.zero for stage in plan.stages}
    recompute = dict.fromkeys(stage.recompute for stage in plan.stages)
    slices, schedule = plan.schedule.microbatches, plan.schedule.name
    extra = [f"zero {'/'.join(map(str, sorted(zero)))}"] if zero != {0} else []
    extra += [f"recompute {'/'.join(recompute)}"] if list(recompute) != ["none"] else []
    extra += [schedule] if schedule != "none" else []
    extra += [f"{slices} microbatches"] if slices > 1 else []
    return ", ".join([" × ".join(axes), *extra])


def _predicted(plan: Plan) -> dict[str, Any]:
    fields = ("step_time_s", "step_time_low_s", "step_time_high_s", "peak_memory_bytes", "limit")
    return {name: getattr(plan.predicted, name) for name in fields}
