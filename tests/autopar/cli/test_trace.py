"""``autopar trace``: a file for Perfetto, the prediction explained, a measured trace beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.autopar.cli.command import assert_is_clear_error, run_command, saved_plan
from tests.autopar.report.chrome_traces import assert_is_chrome_trace

MEASURED = [
    {"ph": "X", "name": "ProfilerStep#1", "cat": "user", "ts": 500.0, "dur": 9.0, "pid": 3, "tid": 3},
    {"ph": "X", "name": "aten::mm", "cat": "cpu_op", "ts": 502.0, "dur": 4.0, "pid": 3, "tid": 3},
]


def test_a_trace_is_written_and_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = run_command(capsys, "trace", saved_plan(tmp_path), "-o", tmp_path / "trace.json")
    assert done.code == 0, done.err
    assert done.out == ""
    assert "on the timeline" in done.err
    assert "ui.perfetto.dev" in done.err
    trace: dict[str, Any] = json.loads((tmp_path / "trace.json").read_text())
    assert_is_chrome_trace(trace["traceEvents"])
    plan_step_s = json.loads((tmp_path / "plan.json").read_text())["predicted"]["step_time_s"]
    assert trace["autopar"]["plan_step_s"] == plan_step_s
    assert trace["autopar"]["step_s"] == pytest.approx(plan_step_s, rel=1e-2)
    titles = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert titles == ["predicted: rank 0 (and 1 like it)"]


@pytest.mark.parametrize("is_packed", [False, True])
def test_measured_rows_stand_beside_the_predicted_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, is_packed: bool
) -> None:
    text = json.dumps({"traceEvents": MEASURED}).encode()
    (tmp_path / "measured.json").write_bytes(gzip.compress(text) if is_packed else text)
    arguments = ("--ranks", 2, "--measured", tmp_path / "measured.json")
    done = run_command(capsys, "trace", saved_plan(tmp_path), "-o", tmp_path / "trace.json", *arguments)
    assert done.code == 0, done.err
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    titles = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert titles == ["predicted: rank 0", "predicted: rank 1", "measured: process 3"]
    starts = {event["name"]: event["ts"] for event in events if event["ph"] == "X" and event["pid"] > 1}
    assert starts == {"ProfilerStep#1": 0.0, "aten::mm": 2.0}


def test_a_measured_trace_that_is_none_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan, output, measured = saved_plan(tmp_path), tmp_path / "trace.json", tmp_path / "measured.json"

    def refused(*words: str) -> None:
        done = run_command(capsys, "trace", plan, "-o", output, "--measured", measured)
        assert_is_clear_error(done, "measured trace", *words)
        assert not output.exists()

    refused("measured.json", "cannot be read")
    measured.write_text("{")
    refused("is not JSON", "--profile FILE")
    measured.write_bytes(b"\x1f\x8bnot gzip")
    refused("measured.json")
    measured.write_text('{"traceEvents": []}')
    refused("was anything profiled")


def test_more_ranks_than_there_are_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = run_command(capsys, "trace", saved_plan(tmp_path), "-o", tmp_path / "t.json", "--ranks", 3)
    assert_is_clear_error(done, "the plan has 2 ranks that do the same", "3")


def test_a_place_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = run_command(capsys, "trace", saved_plan(tmp_path), "-o", tmp_path / "no" / "t.json")
    assert_is_clear_error(done, "cannot be written", "no/t.json")
