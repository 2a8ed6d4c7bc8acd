"""``autopar emit``: two files or none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopar.plan.files import read_plan
from tests.autopar.cli.command import assert_is_clear_error, run_command, saved_plan


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    return saved_plan(tmp_path)


def broken(path: Path, **changes: str) -> Path:
    """The plan with the strategy of one operator replaced."""
    data: Any = msgspec.json.decode(path.read_bytes())
    block = next(segment for segment in data["segments"] if segment["count"] > 1)
    for operator in block["operators"]:
        operator["strategy"] = changes.get(operator["name"], operator["strategy"])
    bad = path.with_name("bad.json")
    bad.write_bytes(msgspec.json.encode(data))
    return bad


def files_in(folder: Path) -> Iterator[str]:
    return (each.name for each in sorted(folder.iterdir()))


def test_folder_holds_program_and_plan(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "out"
    done = run_command(capsys, "emit", plan_path, "-o", folder)
    assert done.code == 0
    assert list(files_in(folder)) == ["plan.json", "program.py"]
    assert read_plan(folder / "plan.json") == read_plan(plan_path)
    ast.parse((folder / "program.py").read_text())
    assert f"torchrun --nproc-per-node 2 {folder / 'program.py'}" in done.err


def test_emitting_again_replaces_both(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("program.py", "plan.json", "notes.txt"):
        (folder / name).write_text("old")
    assert run_command(capsys, "emit", plan_path, "-o", folder).code == 0
    assert list(files_in(folder)) == ["notes.txt", "plan.json", "program.py"]
    assert "GPTBlock" in (folder / "program.py").read_text()
    assert (folder / "notes.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("strategy", "words"),
    [("tp:nonsense", ("GPTBlock.k", "nonsense", "tp")), ("pp:o", ("GPTBlock.k", "pp"))],
)
def test_a_strategy_broken_by_hand_names_the_operator(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path, strategy: str, words: tuple[str, ...]
) -> None:
    bad = broken(plan_path, k=strategy)
    assert_is_clear_error(run_command(capsys, "emit", bad, "-o", tmp_path / "out"), *words)
    assert_is_clear_error(run_command(capsys, "show", bad), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: text.replace('"autopar-plan/1"', '"autopar-plan/9"'), "autopar-plan/9"),
        (lambda text: text.replace('"tokens": 32', '"tokens": "many"'), "tokens"),
        (lambda text: text.replace("float32[16, 16]", "float32[17, 16]"), "17"),
        (lambda text: "[]", "format"),
    ],
)
def test_a_damaged_plan_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path, damage: Any, word: str
) -> None:
    plan_path.write_text(damage(plan_path.read_text()))
    done = run_command(capsys, "emit", plan_path, "-o", tmp_path / "out")
    assert_is_clear_error(done, word)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_stays_as_it_was(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    assert_is_clear_error(run_command(capsys, "emit", plan_path, "-o", tmp_path / "file"), "is a file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "plan.json").mkdir(parents=True)
    assert_is_clear_error(run_command(capsys, "emit", plan_path, "-o", tmp_path / "out"), "plan.json")
    assert list(files_in(tmp_path / "out")) == ["plan.json"]


def test_an_edited_strategy_is_taken_and_priced_again(
    capsys: pytest.CaptureFixture[str], plan_path: Path, tmp_path: Path
) -> None:
    edited = broken(plan_path, gelu_1="")
    assert run_command(capsys, "emit", edited, "-o", tmp_path / "out").code == 0
    before, after = read_plan(plan_path), read_plan(tmp_path / "out" / "plan.json")
    assert after.predicted.step_time_s > before.predicted.step_time_s
    assert after.conversions != before.conversions
