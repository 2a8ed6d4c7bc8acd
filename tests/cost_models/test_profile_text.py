"""A profile that is written and read again is the same profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cost_models.profile_text import format_profile
from cost_models.profiles import builtin_profile, profile_names, read_profile


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_round_trips(name: str, tmp_path: Path) -> None:
    profile = builtin_profile(name)
    file = tmp_path / "profile.toml"
    file.write_text(format_profile(profile), encoding="utf-8")
    again = read_profile(file)
    assert again == profile
    assert format_profile(again) == format_profile(profile)


def test_text_in_sources_survives_quotes_and_backslashes(tmp_path: Path) -> None:
    profile = builtin_profile("cpu")
    odd = 'a "quoted" C:\\path, µs\nand a second line'
    file = tmp_path / "profile.toml"
    file.write_text(
        format_profile(replace(profile, intra=replace(profile.intra, source=odd))), encoding="utf-8"
    )
    assert read_profile(file).intra.source == odd
