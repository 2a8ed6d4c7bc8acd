"""Running a command in this process, and plans to run commands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from autopar.cli.main import run
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.files import write_plan
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, plan_model

GPT = "gpt:layers=2,hidden=16,heads=2,vocab=16"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run ``autopar ARGUMENTS``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Done(int(left.value.code or 0), captured.out, captured.err)


def small_plan(source: str = GPT, cluster: str = "cpu:2", pins: str = "tp=2", batch: int | None = 4) -> Plan:
    """A plan of a model small enough to plan in a second."""
    built = parse_model(source).build(global_batch=batch, seq_len=8)
    options = PlanOptions(pins, source=source)
    return plan_model(built.module, built.args, built.kwargs, cluster_named(cluster), options)


def saved_plan(folder: Path, **choices: object) -> Path:
    path = folder / "plan.json"
    write_plan(small_plan(**choices), path)  # type: ignore[arg-type]
    return path


def assert_is_clear_error(done: Done, *words: str) -> None:
    """Exit code 2, one error on stderr that says ``words``, nothing on stdout, no traceback."""
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error: ") == 1
    message = done.err.partition("error: ")[2]
    for word in words:
        assert word in message, message
