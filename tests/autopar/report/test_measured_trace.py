"""What torch.profiler wrote stands beside the prediction: at the step's start, under numbers of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from autopar.errors import TraceError
from autopar.report.measured_trace import FIRST_PROCESS, measured_events


def complete(name: str, ts: float, dur: float, pid: object = 7, cat: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "pid": pid, "tid": 1, "args": {}}


def times(events: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {event["name"]: (event["ts"], event["dur"]) for event in events if event["ph"] == "X"}


def test_a_step_mark_is_time_zero_and_what_came_before_is_left_out() -> None:
    events = [
        complete("before", 100.0, 50.0),
        complete("across", 900.0, 300.0),
        complete("ProfilerStep#3", 1000.0, 500.0),
        complete("ProfilerStep#4", 1500.0, 500.0),
        complete("mm", 1100.0, 20.0),
    ]
    assert times(measured_events({"traceEvents": events})) == {
        "across": (0.0, 200.0),
        "ProfilerStep#3": (0.0, 500.0),
        "ProfilerStep#4": (500.0, 500.0),
        "mm": (100.0, 20.0),
    }


def test_without_a_mark_the_first_kernel_is_time_zero() -> None:
    events = [complete("launch", 10.0, 5.0), complete("gemm", 12.0, 5.0, pid=0, cat="kernel")]
    assert times(measured_events(events)) == {"launch": (0.0, 3.0), "gemm": (0.0, 5.0)}


def test_processes_are_renumbered_and_say_that_they_are_measured() -> None:
    named = {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "ts": 0, "args": {"name": "python"}}
    events = [named, complete("op", 0.0, 9.0, pid=4242), complete("gemm", 1.0, 5.0, pid=0, cat="kernel")]
    found = measured_events(events)
    assert all(event["pid"] >= FIRST_PROCESS for event in found)
    titles = [event["args"]["name"] for event in found if event["name"] == "process_name"]
    assert titles == ["measured: python 0", "measured: process 4242"]
    places = [event["args"]["sort_index"] for event in found if event["name"] == "process_sort_index"]
    assert places == sorted(places)


def test_what_torch_exports_is_read(tmp_path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("ProfilerStep#0"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = times(measured_events(json.loads((tmp_path / "trace.json").read_text())))
    assert found["ProfilerStep#0"][0] == 0.0
    start, length = found["aten::mm"]
    assert 0.0 <= start <= start + length <= found["ProfilerStep#0"][1]


@pytest.mark.parametrize("trace", [{}, [], "text", {"traceEvents": [{"ph": "M", "pid": 1}]}, None])
def test_what_is_no_trace_is_refused(trace: object) -> None:
    with pytest.raises(TraceError, match="measured trace"):
        measured_events(trace)
