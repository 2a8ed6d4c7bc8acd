"""Public instances are read, solved to the published optimum, and bad files are one clear error."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from solver import evaluate, solve
from solver.__main__ import main
from solver.iopddl import InstanceError, read_instance

INSTANCES = Path(__file__).parents[3] / "shared" / "iopddl"

PUBLISHED = {"B": 532_843, "G": 217_039}

SMALL = {
    "problem": {
        "name": "small",
        "nodes": {
            "intervals": [[0, 2], [1, 3], [5, 5]],
            "costs": [[1, 5], [2, 10**18], [4]],
            "usages": [[30, 10], [20, 0], [99]],
        },
        "edges": {"nodes": [[0, 1]], "costs": [[7, 0, 1, 0]]},
        "usage_limit": 40,
    }
}


def written(folder: Path, content: object) -> Path:
    path = folder / "instance.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def test_an_instance_is_read_as_it_is_meant(tmp_path: Path) -> None:
    problem = read_instance(written(tmp_path, SMALL))
    assert problem.usage_limit == 40
    assert problem.nodes[1].costs.tolist() == [2, math.inf]
    assert evaluate(problem, (1, 0, 0)).cost == 5 + 2 + 4 + 1
    assert evaluate(problem, (0, 0, 0)).peak_usage == 50


def test_plain_json_and_no_edges_and_no_limit_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps({"problem": {"nodes": SMALL["problem"]["nodes"]}}))
    assert read_instance(path).usage_limit == math.inf


def test_the_answer_is_one_json_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, SMALL)), "--json", "--time-limit", "5"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["status"], answer["cost"], answer["lower_bound"]) == ("optimal", 12, 12)
    assert answer["choice"] == [1, 0, 0]
    assert answer["wall_s"] < 5


def test_an_infeasible_instance_is_an_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = {"problem": SMALL["problem"] | {"usage_limit": 20}}
    assert main([str(written(tmp_path, content)), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["status"], answer["cost"], answer["choice"]) == ("infeasible", None, None)


def broken(**changes: object) -> object:
    return {"problem": SMALL["problem"] | changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nodes": {}}, "has no key 'problem'"),
        ([], "not an iopddl instance"),
        (broken(edges={"nodes": [[0, 7]], "costs": [[0]]}), "not an iopddl instance"),
        (broken(edges={"nodes": [[0, 1]], "costs": [[0, 1]]}), "not an iopddl instance"),
        (broken(nodes=SMALL["problem"]["nodes"] | {"usages": [[1], [1], [1]]}), "2 costs but 1 usages"),
        (broken(nodes=SMALL["problem"]["nodes"] | {"intervals": [[0, 1]]}), "not an iopddl instance"),
        (broken(usage_limit="much"), "not an iopddl instance"),
    ],
)
def test_a_bad_instance_is_one_error_and_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InstanceError, match=message):
        read_instance(path)
    assert main([str(path), "--json"]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08broken", b"{", b"\xff\xfe\x00"])
def test_a_damaged_file_is_one_error_and_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "instance.json.gz"
    path.write_bytes(data)
    assert main([str(path)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "missing.json")]) == 2


@pytest.mark.parametrize("option", [["--time-limit", "0"], ["--gap", "2"], ["--time-limit", "soon"]])
def test_a_bad_option_is_exit_code_2(tmp_path: Path, option: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(written(tmp_path, SMALL)), *option])
    assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the public instances are not here")
@pytest.mark.parametrize("name", PUBLISHED)
def test_public_instances_are_solved_to_their_optimum(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = INSTANCES / f"asplos-2025-iopddl-{name}.json.gz"
    assert main([str(path), "--json", "--time-limit", "120"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["status"] == "optimal"
    assert answer["cost"] == PUBLISHED[name]
    assert answer["lower_bound"] >= PUBLISHED[name] * (1 - 1e-4)
    assert evaluate(read_instance(path), answer["choice"]).cost == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the public instances are not here")
def test_a_problem_too_large_to_prove_is_solved_better_than_the_contest_did() -> None:
    path = INSTANCES / "asplos-2025-iopddl-V.json.gz"
    problem = read_instance(path)
    found = solve(problem, time_limit_s=60)
    assert found.cost < 2_213_404  # the winner's entry
    assert 1_100_000 < found.lower_bound < found.cost
    assert evaluate(problem, found.choice).fits(problem.usage_limit)
