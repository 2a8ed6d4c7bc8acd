"""Wall time and peak memory of ``autopar plan`` on large models and clusters, everything included.

    python benchmarks/planner.py [--only NAME] [--scaling] [-o benchmarks/results/planner.md]

Each question is asked in a process of its own, which does what ``autopar plan MODEL --cluster CLUSTER -o FILE``
does and notes when it has imported, built the model, captured it, found a plan and written it. The whole is timed
from outside, start and end of the interpreter included. Peak memory is the process's largest resident set.
Where the bars apply the processes are held to two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import hold_to_cores, processor

GB = 10**9
CORES = 2


@dataclass(frozen=True, slots=True)
class Question:
    """What ``autopar plan`` is asked, and in what time and memory it should answer."""

    name: str
    model: str
    cluster: str
    global_batch: int
    precision: str
    seq_len: int | None = None
    """The model's own where None."""
    bar_s: float | None = None
    bar_bytes: int | None = None
    is_scaling: bool = False
    """Asked to compare with a question half as large."""


GPT_39B = "gpt:layers={},hidden=8192,heads=64,vocab=51200"  # Alpa (OSDI 2022), its largest GPT
QUESTIONS = (
    Question("gpt-39b", GPT_39B.format(48), "v100:8x8", 1024, "fp16", seq_len=1024, bar_s=12),
    Question("llama3-8b", "llama3-8b", "h100:8x8", 512, "bf16", bar_s=12),
    Question("llama3-70b", "llama3-70b", "h100:64x8", 1024, "bf16", bar_s=12),
    Question("llama3-405b", "llama3-405b", "h100:2048x8", 2048, "bf16", bar_s=20, bar_bytes=2 * GB),
    Question("gpt-39b, 96 layers", GPT_39B.format(96), "v100:8x8", 1024, "fp16", 1024, is_scaling=True),
    Question("llama3-8b, 64 layers", "llama3-8b:layers=64", "h100:8x8", 512, "bf16", is_scaling=True),
    Question("llama3-8b, 128 devices", "llama3-8b", "h100:16x8", 512, "bf16", is_scaling=True),
    Question("llama3-70b, 160 layers", "llama3-70b:layers=160", "h100:64x8", 1024, "bf16", is_scaling=True),
    Question("llama3-70b, 1024 devices", "llama3-70b", "h100:128x8", 1024, "bf16", is_scaling=True),
)


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each phase inside the process, and what came out."""

    import_s: float
    build_s: float
    capture_s: float
    search_s: float
    write_s: float
    plan: str
    step_time_s: float
    peak_memory_bytes: int
    """Of one device, as the plan predicts it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One process."""

    question: Question
    phases: Phases | None
    """None where the process failed."""
    total_s: float
    processor_s: float
    """User and system time: the total of a machine with nothing else to do, or more where it used two cores."""
    resident_bytes: int
    error: str = ""


def ask(question: Question) -> Answer:
    """Plans in a fresh process."""
    command = [sys.executable, __file__, "--answer", json.dumps(asdict(question))]
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        total_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        phases = Phases(**json.loads(output.read())) if process.returncode == 0 else None
        lines = errors.read().strip().splitlines()
    error = lines[-1] if phases is None and lines else ""
    processor_s = usage.ru_utime + usage.ru_stime
    return Answer(question, phases, total_s, processor_s, usage.ru_maxrss * 1024, error)


def answer(question: Question) -> Phases:
    """Does what ``autopar plan`` does, phase by phase."""
    clock = _Clock()
    import atexit
    import gc

    import torch._dynamo  # noqa: F401  what torch.export imports at its first call

    from autopar.capture.precision import capture_in
    from autopar.cli.main import OBJECTS_BETWEEN_COLLECTIONS
    from autopar.clusters import cluster_named
    from autopar.models import parse_model
    from autopar.plan.files import write_plan
    from autopar.planning import PlanOptions, plan_graph
    from autopar.report.text import summary

    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)
    import_s = clock.lap_s()
    cluster = cluster_named(question.cluster)
    built = parse_model(question.model).build(global_batch=question.global_batch, seq_len=question.seq_len)
    build_s = clock.lap_s()
    graph = capture_in(question.precision, built.module, built.args, built.kwargs)
    capture_s = clock.lap_s()
    options = PlanOptions(precision=question.precision, source=question.model)
    plan = plan_graph(graph, cluster, options)
    search_s = clock.lap_s()
    with tempfile.TemporaryDirectory() as folder:
        write_plan(plan, Path(folder) / "plan.json")
    summary(plan, cluster=cluster)
    return Phases(
        import_s,
        build_s,
        capture_s,
        search_s,
        clock.lap_s(),
        plan=" × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh) or "one device",
        step_time_s=plan.predicted.step_time_s,
        peak_memory_bytes=plan.predicted.peak_memory_bytes,
    )


class _Clock:
    def __init__(self) -> None:
        self.before_s = time.perf_counter()

    def lap_s(self) -> float:
        """Seconds since the last lap."""
        now_s = time.perf_counter()
        lap_s, self.before_s = now_s - self.before_s, now_s
        return lap_s


def table(answers: Iterable[Answer]) -> str:
    """The answers as Markdown."""
    columns = (
        *("question", "model", "cluster", "sequences", "import s", "build s", "capture s", "search s"),
        *("write s", "total s", "processor s", "bar s", "memory GB", "plan", "step s", "GB per device"),
    )
    rows = [columns, tuple("---" for _ in columns), *(_row(each) for each in answers)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(each: Answer) -> tuple[str, ...]:
    question, phases = each.question, each.phases
    asked = (question.name, question.model, question.cluster, str(question.global_batch))
    bar = "" if question.bar_s is None else f"{question.bar_s:g}"
    whole = (f"{each.total_s:.1f}", f"{each.processor_s:.1f}", bar, f"{each.resident_bytes / GB:.2f}")
    if phases is None:
        return (*asked, *("—" for _ in range(5)), *whole, each.error.replace("|", "/"), "—", "—")
    laps = (phases.import_s, phases.build_s, phases.capture_s, phases.search_s, phases.write_s)
    found = (phases.plan, f"{phases.step_time_s:.3g}", f"{phases.peak_memory_bytes / GB:.1f}")
    return (*asked, *(f"{lap_s:.2f}" for lap_s in laps), *whole, *found)


def misses(answers: Iterable[Answer]) -> list[str]:
    """What took longer or more than its bar, in words."""
    found = []
    for each in answers:
        question = each.question
        if question.bar_s is not None and each.total_s > question.bar_s:
            found.append(f"{question.name}: {each.total_s:.1f} s, bar {question.bar_s:g} s")
        if question.bar_bytes is not None and each.resident_bytes > question.bar_bytes:
            memory = f"{each.resident_bytes / GB:.2f} GB, bar {question.bar_bytes / GB:g} GB"
            found.append(f"{question.name}: {memory}")
        if each.phases is None:
            found.append(f"{question.name}: no plan. {each.error}")
    return found


def page(answers: list[Answer], command: str) -> str:
    """The result file."""
    import torch

    today = datetime.date.today().isoformat()
    return (
        f"# Planning time\n\nGenerated by `{command}` on {today}: {processor()}, {CORES} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}.\n\n{table(answers)}\n\n"
        "One fresh process each. `total` is timed from outside; `memory` is the largest resident set; "
        "the last two columns are what the plan predicts.\n\n"
        + "".join(f"- over its bar: {line}\n" for line in misses(answers))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="ask this question alone")
    parser.add_argument("--scaling", action="store_true", help="also with twice the layers or devices")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(asdict(answer(Question(**json.loads(options.answer))))))
        return
    asked = [each for each in QUESTIONS if _is_asked(each, options.only, is_scaling=options.scaling)]
    if not asked:
        parser.error(f"unknown question {options.only!r}; known: {', '.join(q.name for q in QUESTIONS)}")
    hold_to_cores(CORES)
    answers = []
    for question in asked:
        answers.append(ask(question))
        print(table(answers[-1:]).splitlines()[-1], flush=True)
    print(table(answers), *misses(answers), sep="\n")
    if options.output:
        command = " ".join(["python", "benchmarks/planner.py", *sys.argv[1:]])
        options.output.write_text(page(answers, command), encoding="utf-8")


def _is_asked(question: Question, only: str | None, *, is_scaling: bool) -> bool:
    return question.name == only if only else is_scaling or not question.is_scaling


if __name__ == "__main__":
    main()
