"""Measuring this CPU gives a profile that reads and prices; links are measured between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autopar.errors import ClusterError
from autopar.measure import profile as measuring
from autopar.measure.__main__ import main
from autopar.measure.collectives import group_sizes, measure_links, wire_bytes
from autopar.measure.profile import base_profile, device_named
from autopar.measure.readings import Readings
from cost_models.operators import Work, operator_s
from cost_models.profiles import read_profile

NEEDED = "import autopar.measure.__main__"
NOT_THERE = ("msgspec", "pulp", "highspy", "typer", "rich", "transformers", "networkx")


@pytest.mark.slow
def test_a_quick_run_on_the_cpu_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, readings = tmp_path / "here.toml", tmp_path / "here.json"
    arguments = [
        "--quick",
        "--device",
        "cpu",
        "--name",
        "here",
        "-o",
        str(profile),
        "--readings",
        str(readings),
    ]
    assert main(arguments) == 0
    device = read_profile(profile).device
    assert device.name == "here"
    assert device.kind == "cpu"
    assert "threads" in device.matmul["float32"].source
    work = Work("matmul", 2.0 * 256**3, 2 * 256**2 * 4, 256**2 * 4, "float32", m=256, n=256, k=256)
    assert 0 < operator_s(work, device).seconds < 1
    taken = Readings.read(readings)
    assert {link.collective for link in taken.links} >= {"all_reduce", "all_gather", "send"}
    assert all(reading.seconds > 0 for reading in (*taken.operators, *taken.links, *taken.host))
    assert "operators" in capsys.readouterr().err


def test_readings_are_fitted_again_without_measuring(tmp_path: Path) -> None:
    from cost_models.profiles import builtin_profile
    from tests.autopar.measure.synthetic import readings_of

    readings, profile = tmp_path / "readings.json", tmp_path / "again.toml"
    readings_of(builtin_profile("h100")).write(readings)
    assert main(["--readings-from", str(readings), "--base", "h100", "-o", str(profile)]) == 0
    assert read_profile(profile).device.name == "h100"


def test_measuring_needs_only_torch_and_numpy() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in NOT_THERE)
    subprocess.run([sys.executable, "-c", f"import sys; {blocked}; {NEEDED}"], check=True, timeout=120)


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_known_gpus_are_recognised_by_the_driver_s_name(
    device: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_device_name", lambda _: device)
    base = base_profile(torch.device("cuda", 0))
    assert base is not None
    assert base.device.name == profile


@pytest.mark.parametrize("device", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090"])
def test_gpus_with_other_figures_are_not_taken_for_known_ones(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_device_name", lambda _: device)
    assert base_profile(torch.device("cuda", 0)) is None


def test_a_device_that_is_not_there_is_an_error_with_a_next_step() -> None:
    with pytest.raises(ClusterError, match="known are cuda, cpu"):
        device_named("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ClusterError, match="measure the cpu"):
            device_named("cuda")


def test_groups_double_up_to_the_whole_node() -> None:
    assert group_sizes(1) == ()
    assert group_sizes(2) == (2,)
    assert group_sizes(6) == (2, 4, 6)
    assert group_sizes(8) == (2, 4, 8)


def test_ranks_put_on_the_wire_what_a_ring_does() -> None:
    assert wire_bytes("all_gather", 4, 1024) == 768
    assert wire_bytes("all_reduce", 4, 1024) == 2 * 768
    assert wire_bytes("send", 2, 1024) == 1024


def test_one_device_has_no_links() -> None:
    assert measure_links("cpu", 1).readings == ()


@pytest.mark.slow
def test_links_between_four_processes_are_measured_for_two_and_four() -> None:
    outcome = measure_links("cpu", 4, is_quick=True)
    assert {link.ranks for link in outcome.readings} == {2, 4}
    assert {link.collective for link in outcome.readings if link.ranks == 4} == {
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all",
    }  # fmt: skip
