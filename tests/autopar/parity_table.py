"""Run every parity case and write the errors as a table: ``python -m tests.autopar.parity_table [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from autopar.errors import AutoparError
from autopar.plan.files import format_plan
from autopar.plan.schema import Plan
from tests.autopar.parity import EPSILON, LEARNING_RATE, STEPS, Case, all_cases, case_plan, measure, worst
from tests.autopar.parity_executions import execution_cases, pipeline_cases
from tests.gloo_pool import GlooPool, RankFailedError

HEAD = f"""# Parallel against plain training

Relative errors, norm-wise, of the loss, of the worst gradient and of the worst parameter after {STEPS} steps
of AdamW (learning rate {LEARNING_RATE}, epsilon {EPSILON}); float32, gloo processes on CPU, torch {torch.__version__}.
Models, ways and the floors of the errors: `tests/autopar/parity.py` and `parity_executions.py` (microbatches,
recomputation, ZeRO, stages). `pytest tests/autopar/test_parity.py tests/autopar/test_parity_executions.py` demands
1e-5 of loss and gradients, 1e-4 of parameters. Written by

    python -m tests.autopar.parity_table benchmarks/results/parity_2026-11.md

| model | planned for | pinned or forced | mesh | loss | gradient | of | parameter | of |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def rows() -> Iterator[str]:
    """One row per case, as it is done."""
    with GlooPool(2) as two, GlooPool(4) as four, GlooPool(8) as eight:
        pools = {2: two, 4: four, 8: eight}
        for case in (*all_cases(), *execution_cases(), *pipeline_cases()):
            yield _row(case, pools[case.world])


def _row(case: Case, pool: GlooPool) -> str:
    model, cluster, way = str(case).split(" ", 2)
    try:
        plan = case_plan(case)
        errors = worst(pool.run(measure, case, format_plan(plan)))
    except (AutoparError, RankFailedError) as error:
        reason = str(error).strip().splitlines()
        return f"| {model} | {cluster} | {way} | failed: {reason[-1] if reason else error!r} | | | | | |"
    return (
        f"| {model} | {cluster} | {way} | {_mesh(plan)} | {errors.loss:.1e} | {errors.gradient:.1e} "
        f"| {errors.gradient_of} | {errors.parameter:.1e} | {errors.parameter_of} |"
    )


def _mesh(plan: Plan) -> str:
    """Axes, and beside them the schedule and the microbatches where there are several."""
    axes = " × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh)
    schedule = f", {plan.schedule.name}" * (plan.schedule.name != "none")
    return axes + schedule + f", {plan.schedule.microbatches} microbatches" * (plan.schedule.microbatches > 1)


def main() -> None:
    """Write the table to the file named on the command line, or to stdout."""
    found = []
    for row in rows():
        print(row, flush=True)
        found.append(row)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(HEAD + "\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
