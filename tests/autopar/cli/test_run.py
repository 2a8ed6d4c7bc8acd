"""``autopar run``: processes that train, measured beside predicted, verified, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.autopar.cli.command import Done, assert_is_clear_error, run_command, saved_plan

MODEL = """
import os
import torch

RANK = int(os.environ.get("RANK", "0"))

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = torch.nn.Linear(8, width)
        self.down = torch.nn.Linear(width, 8)

    def forward(self, x):
        return (self.down(torch.relu(self.up(x))) - x).square().mean()

def net():
    return Net({width}), (torch.randn(4, 8),)

def fails_on_rank_1():
    if RANK == 1 and torch.empty(0).device.type != "meta":
        raise RuntimeError("rank one has no luck")
    return net()

def differs_by_rank():
    module, inputs = net()
    return module, tuple(tensor * (1 + RANK) for tensor in inputs)
"""


def model_file(folder: Path, width: int = 16) -> Path:
    path = folder / "net.py"
    path.write_text(MODEL.replace("{width}", str(width)))
    return path


def run_in_process(*arguments: object) -> Done:
    """``autopar run`` as a process of its own: it starts others."""
    command = [sys.executable, "-m", "autopar.cli.main", "run", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_measured_stands_beside_predicted_and_numbers_are_the_single_devices(tmp_path: Path) -> None:
    path = saved_plan(tmp_path)
    done = run_in_process(path, "--steps", 3, "--verify", "--json")
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    figures = {"step_time_s", "tokens_per_s", "mfu", "hfu", "peak_memory_bytes", "memory"}
    assert set(result["predicted"]) == set(result["measured"]) == figures
    assert all(value > 0 for name, value in result["measured"].items() if name != "memory")
    tokens = json.loads(path.read_text())["training"]["tokens"]
    measured = result["measured"]
    assert measured["tokens_per_s"] == pytest.approx(tokens / measured["step_time_s"])
    _assert_utilization(result, json.loads(path.read_text()))
    verification = result["verification"]
    assert verification["passed"] is True
    assert verification["loss_relative_error"] < 1e-5
    assert verification["gradient_relative_error"] < 1e-5
    assert verification["worst_parameter"]
    assert len(result["losses"]) == 3
    assert result["losses"][-1] < result["losses"][0]


def _assert_utilization(result: dict[str, Any], plan: dict[str, Any]) -> None:
    predicted, measured = result["predicted"], result["measured"]
    assert predicted["mfu"] == pytest.approx(plan["predicted"]["mfu"])
    assert measured["mfu"] * measured["step_time_s"] == pytest.approx(
        predicted["mfu"] * predicted["step_time_s"]
    )
    assert predicted["hfu"] == predicted["mfu"]  # nothing is recomputed
    assert predicted["memory"] == plan["predicted"]["memory"][0]
    # What of the gradients exists at the fullest moment is predicted, all of them are measured.
    assert predicted["memory"]["gradients_bytes"] <= measured["memory"]["gradients_bytes"] * 1.02
    for category in ("parameters_bytes", "optimizer_bytes"):
        assert measured["memory"][category] == pytest.approx(predicted["memory"][category], rel=0.02)


@pytest.mark.slow
def test_a_profiled_step_stands_beside_the_predicted_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved_plan(tmp_path)
    done = run_in_process(path, "--steps", 1, "--json", "--profile", tmp_path / "measured.json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["losses"]) == 1
    arguments = ("--measured", tmp_path / "measured.json")
    traced = run_command(capsys, "trace", path, "-o", tmp_path / "trace.json", *arguments)
    assert traced.code == 0, traced.err
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    mark = next(event for event in events if event.get("name") == "ProfilerStep#0")
    inside = [e for e in events if e["name"] == "aten::mm" and e["ts"] < mark["dur"]]
    assert mark["ts"] == 0.0
    assert inside


def test_a_trace_that_cannot_be_written_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = run_command(capsys, "run", saved_plan(tmp_path), "--profile", tmp_path / "no" / "trace.json")
    assert_is_clear_error(done, "cannot be written", "no/trace.json")


@pytest.mark.slow
def test_other_numbers_than_the_single_devices_exit_with_1(tmp_path: Path) -> None:
    path = saved_plan(
        tmp_path, source=f"{model_file(tmp_path)}:differs_by_rank", pins="dp_replicate=2", batch=None
    )
    done = run_in_process(path, "--steps", 1, "--verify")
    assert done.code == 1, done.err
    assert "NOT the single-device model" in done.out


@pytest.mark.slow
def test_a_failing_rank_is_reported_once(tmp_path: Path) -> None:
    path = saved_plan(tmp_path, source=f"{model_file(tmp_path)}:fails_on_rank_1", batch=None)
    done = run_in_process(path, "--steps", 1)
    assert_is_clear_error(done, "rank 1 failed", "rank one has no luck")
    assert done.err.count("RuntimeError: rank one has no luck") == 1


def test_another_number_of_processes_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = run_command(capsys, "run", saved_plan(tmp_path), "--nproc", 3)
    assert_is_clear_error(done, "2 ranks", "3 processes")


def test_another_model_under_the_same_name_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved_plan(tmp_path, source=f"{model_file(tmp_path)}:net", batch=None)
    model_file(tmp_path, width=32)
    assert_is_clear_error(run_command(capsys, "run", path), "up.weight", "[16, 8]", "[32, 8]")


def test_a_model_that_is_gone_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = model_file(tmp_path)
    path = saved_plan(tmp_path, source=f"{model}:net", batch=None)
    model.unlink()
    assert_is_clear_error(run_command(capsys, "run", path), "net.py")


def test_a_plan_without_a_source_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved_plan(tmp_path)
    data: Any = msgspec.json.decode(path.read_bytes())
    data["model"]["source"] = ""
    path.write_bytes(msgspec.json.encode(data))
    assert_is_clear_error(run_command(capsys, "run", path), "autopar plan MODEL", "parallelize")
