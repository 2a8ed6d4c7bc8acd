"""The same question has the answer that it had, without being planned again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopar.cli.cache import question_key
from tests.autopar.cli.command import GPT, run_command

PLAN = ("plan", GPT, "--cluster", "cpu:2", "--global-batch", 4, "--seq-len", 8, "--json")


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json"))


def test_the_second_time_the_plan_is_the_one_that_was_kept(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    first = run_command(capsys, *PLAN)
    assert len(kept(cache)) == 1
    second = run_command(capsys, *PLAN)
    assert second.out == first.out
    assert "planned before" in second.err
    assert "capturing" not in second.err


def test_another_question_is_planned(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    run_command(capsys, *PLAN)
    other = run_command(capsys, *PLAN, "--pin", "tp=2")
    assert "planned before" not in other.err
    assert json.loads(other.out)["pins"] == "tp=2"
    assert len(kept(cache)) == 2


def test_without_the_cache_nothing_is_read_or_kept(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    done = run_command(capsys, *PLAN, "--no-cache")
    assert done.code == 0
    assert kept(cache) == []


def test_a_damaged_plan_counts_as_none(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    first = run_command(capsys, *PLAN)
    kept(cache)[0].write_text('{"format": "autopar-plan/1", "mesh": []}')
    again = run_command(capsys, *PLAN)
    assert again.code == 0
    assert json.loads(again.out)["mesh"] == json.loads(first.out)["mesh"]
    assert "planned before" not in again.err


def test_a_cache_that_cannot_be_written_does_no_harm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run_command(capsys, *PLAN).code == 0


def test_a_key_tells_every_part_of_a_question(tmp_path: Path) -> None:
    config = tmp_path / "gpt2.json"
    config.write_text('{"n_layer": 2}')
    model = f"hf:GPT2LMHeadModel:{config}"
    keys = {question_key(GPT, {"batch": 4}), question_key(GPT, {"batch": 8}), question_key(model, {})}
    config.write_text('{"n_layer": 3}')
    keys.add(question_key(model, {}))
    assert len(keys) == 4
    assert question_key("model.py:factory", {}) is None
    assert question_key(f"hf:GPT2LMHeadModel:{tmp_path / 'absent.json'}", {}) is None
