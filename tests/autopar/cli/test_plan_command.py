"""``autopar plan`` and ``autopar show``: what they print, where, and how they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autopar.plan.files import parse_plan, read_plan
from tests.autopar.cli.command import GPT, assert_is_clear_error, run_command

PLAN = ("plan", GPT, "--cluster", "cpu:2", "--global-batch", 4, "--seq-len", 8)

FACTORY = """
import torch
print("a model file may print")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        print("so may a forward")
        return self.linear(x).square().mean()

def net():
    return Net(), (torch.zeros(4, 8),)

def broken():
    raise RuntimeError("no weights today")
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "user_model.py"
    path.write_text(FACTORY)
    return path


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom autopar.cli.main import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit as left:\n"
        "    assert not left.code\nassert not {'torch', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_json_is_the_plan_and_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = run_command(capsys, *PLAN, "--pin", "tp=2", "--json", "-o", path)
    assert done.code == 0
    assert parse_plan(done.out) == read_plan(path)
    assert read_plan(path).model.source == GPT


def test_summary_says_what_was_decided(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = run_command(capsys, *PLAN, "-o", path)
    assert done.code == 0
    plan = read_plan(path)
    for words in ("cpu:2", "GPTBlock × 2", "Parameters at rest", "Communication", "lower bound"):
        assert words in done.out
    assert all(f"{axis.axis} {axis.size}" in done.out for axis in plan.mesh)
    assert all(candidate.mesh in done.out for candidate in plan.solver.candidates)
    assert str(path) in done.err


def test_without_output_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_command(capsys, *PLAN, "--pin", "tp=2")
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
    assert "-o plan.json" in done.err


def test_show_repeats_the_summary_and_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned = run_command(capsys, *PLAN, "-o", path)
    assert run_command(capsys, "show", path).out == planned.out
    assert parse_plan(run_command(capsys, "show", path, "--json").out) == read_plan(path)
    assert "unflatten" in run_command(capsys, "show", path, "--all").out


def test_what_a_model_file_prints_stays_off_stdout(
    capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    done = run_command(capsys, "plan", f"{model_file}:net", "--cluster", "cpu:2", "--json")
    assert parse_plan(done.out).model.name == "Net"
    assert "a model file may print" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "gtp2", "--cluster", "cpu:2"), ("gtp2", "gpt2")),
        (("plan", "gpt:layer=2", "--cluster", "cpu:2"), ("layer", "layers")),
        (("plan", "missing.py:factory", "--cluster", "cpu:2"), ("missing.py",)),
        (("plan", GPT, "--cluster", "h1000:8"), ("h1000", "h100")),
        (("plan", GPT, "--cluster", "absent.toml"), ("absent.toml",)),
        ((*PLAN, "--memory", "80 sheep"), ("80 sheep", "GB")),
        ((*PLAN, "--memory", "0GB"), ("0GB",)),
        ((*PLAN, "--memory", "1KB"), ("no plan fits", "needs")),
        ((*PLAN, "--pin", "tp"), ("tp",)),
        ((*PLAN, "--pin", "tp=two"), ("tp=two",)),
        ((*PLAN, "--pin", "tpp=2"), ("tpp", "tp")),
        ((*PLAN, "--pin", "tp=3"), ("3",)),
        ((*PLAN, "--precision", "int4"), ("int4", "bf16")),
        ((*PLAN, "--optimizer", "adam9"), ("adam9", "adamw")),
        ((*PLAN, "-o", "no/such/folder/plan.json"), ("no/such/folder",)),
        ((*PLAN, "-o", "/"), ("which is a folder",)),
        ((*PLAN, "-o", ""), ("which is a folder",)),
        ((*PLAN, "--pin", "pp=2,zero=3"), ("zero=3", "pp=1; zero=0")),
        ((*PLAN, "--pin", "pp=2,microbatch=3"), ("microbatch=1, 2 or 4",)),
        ((*PLAN, "--pin", "pp=1,schedule=1f1b"), ("pp=1 rules it out",)),
        (("show", "absent.json"), ("absent.json",)),
        (("profile", "-o", "no/such/folder/profile.toml"), ("no/such/folder",)),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    assert_is_clear_error(run_command(capsys, *arguments), *words)


def test_a_factory_that_raises_is_quoted(capsys: pytest.CaptureFixture[str], model_file: Path) -> None:
    done = run_command(capsys, "plan", f"{model_file}:broken", "--cluster", "cpu:2")
    assert_is_clear_error(done, "RuntimeError: no weights today", "user_model.py:18")


@pytest.mark.parametrize("arguments", [("plan", GPT), ("plan",), ("plam",), (*PLAN, "--global-batch", 0)])
def test_misuse_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]) -> None:
    done = run_command(capsys, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_cluster_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text('device = "h100"\nname = "pair"\nnodes = 1\ndevices_per_node = 2\n')
    done = run_command(capsys, "plan", GPT, "--cluster", path, "--seq-len", 8)
    assert done.code == 0, done.err
    assert "on pair" in done.out


def test_a_refused_plan_leaves_the_file_as_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    assert_is_clear_error(run_command(capsys, *PLAN, "--pin", "tp=2,zero=3", "-o", path), "zero=3")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_length_that_a_factory_does_not_make_is_refused(
    capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    done = run_command(capsys, "plan", f"{model_file}:net", "--cluster", "cpu:2", "--seq-len", 9)
    assert_is_clear_error(done, "makes no sequences of 9")
