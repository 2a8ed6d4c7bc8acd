"""Every profile loads, every figure in it has a source, and figures lie where physics allows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cost_models.curves import AttentionRates, MatmulCurve
from cost_models.profiles import ProfileError, builtin_profile, profile_names, read_profile

FOLDER = Path(__file__).parents[2] / "cost_models" / "profiles"
FILES = sorted(FOLDER.glob("*.toml"))


def numbers_without_source(entry: Any, path: str = "", has_source: bool = False) -> list[str]:
    """Paths of numbers in ``entry`` that stand in no table with a source."""
    if isinstance(entry, dict):
        sourced = has_source or bool(entry.get("source"))
        return [
            bad
            for key, value in entry.items()
            for bad in numbers_without_source(value, f"{path}.{key}", sourced)
        ]
    if isinstance(entry, list):
        return [bad for value in entry for bad in numbers_without_source(value, path, has_source)]
    return [path] if isinstance(entry, (int, float)) and not has_source else []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_has_a_source(file: Path) -> None:
    table = tomllib.loads(file.read_text())
    table.pop("devices_per_node")
    assert numbers_without_source(table) == []


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_under_all_its_names(name: str) -> None:
    profile = builtin_profile(name)
    assert name in (profile.device.name, *profile.aliases)
    assert profile.intra.bytes_per_s > 0
    assert set(profile.device.sources) >= {"memory_bytes", "memory_bytes_per_s", "peak_flops_per_s.float32"}


def test_the_promised_names_exist() -> None:
    promised = {
        "v100",
        "v100-16gb",
        "v100-32gb",
        "a100",
        "a100-40gb",
        "a100-80gb",
        "h100",
        "h200",
        "b200",
        "cpu",
    }
    assert promised <= set(profile_names())
    assert builtin_profile("a100").device.name == "a100-80gb"
    assert builtin_profile("v100").device.name == "v100-16gb"


@pytest.mark.parametrize("name", profile_names())
def test_measured_rates_stay_below_the_peaks(name: str) -> None:
    device = builtin_profile(name).device
    for dtype, curve in device.matmul.items():
        efficiency = max(curve.tile_efficiency) if isinstance(curve, MatmulCurve) else 1.0
        assert curve.flops_per_s * efficiency <= device.peak(dtype)
    for curve in device.attention.values():
        rates = curve.flops_per_s
        fastest = max(map(max, rates)) if isinstance(curve, AttentionRates) else max(rates)
        assert fastest <= max(device.peak_flops_per_s.values())
    for curve in device.families.values():
        assert curve.bytes_per_s <= device.memory_bytes_per_s


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('kind = "cuda"\n', ""), "kind"),
        (("[figures]", "[figure]"), "figure"),
        (("memory_bytes = {", "memory_byte = {"), "memory_byte"),
        (("value = 85017493504, source", "value = 85017493504, sauce"), "memory_bytes must be"),
        (("ranks = [2, 4, 8]", "ranks = [2, 4]"), "one entry per number of ranks"),
        (("name =", "name"), "h100"),
    ],
)
def test_a_broken_profile_names_the_entry(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    file = tmp_path / "h100-broken.toml"
    file.write_text((FOLDER / "h100.toml").read_text().replace(*change, 1))
    with pytest.raises(ProfileError, match=says) as error:
        read_profile(file)
    assert str(file) in str(error.value)
