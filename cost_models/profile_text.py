"""Writes a profile as the TOML file that ``cost_models.profiles`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from cost_models.device import Device
from cost_models.profiles import Profile
from cost_models.topology import Link

__all__ = ["format_curve", "format_profile"]

_FIGURES = (
    "memory_bytes",
    "memory_bytes_per_s",
    "kernel_launch_s",
    "host_dispatch_s",
    "compiled_call_s",
    "compiled_kernel_s",
    "fresh_bytes_per_s",
    "context_bytes",
    "communicator_bytes",
    "overlap_slowdown",
)


def format_profile(profile: Profile, *, comment: str = "every figure carries its source.") -> str:
    """The whole file, figures rounded to five digits. Reading it gives an equal profile, but for that."""
    device = profile.device
    return "\n".join(
        [
            f"# Device profile: {comment}",
            f"name = {json.dumps(device.name)}",
            f"aliases = {json.dumps(list(profile.aliases))}",
            f"kind = {json.dumps(device.kind)}",
            f"devices_per_node = {profile.devices_per_node}",
            *_figures(device),
            *_peaks(device),
            *_curves("matmul", device.matmul),
            *_curves("attention", device.attention),
            *_curves("memory_bound", device.families),
            *_link("intra", profile.intra),
            *_link("inter", profile.inter),
            "",
        ]
    )


def format_curve(section: str, curve: Any) -> str:
    """One curve as the table ``section`` of a profile."""
    return "\n".join([f"\n[{section}]", *_entries(curve)])


def _figures(device: Device) -> Iterable[str]:
    yield "\n[figures]"
    for name in _FIGURES:
        if name in device.sources:
            yield _figure(name, getattr(device, name), device.sources[name])


def _peaks(device: Device) -> Iterable[str]:
    yield "\n[peak_flops_per_s]"
    for dtype, rate in device.peak_flops_per_s.items():
        yield _figure(dtype, rate, device.sources[f"peak_flops_per_s.{dtype}"])


def _figure(name: str, value: float, source: str) -> str:
    return f"{name} = {{ value = {_value(value)}, source = {_value(source)} }}"


def _curves(section: str, curves: Mapping[str, Any]) -> Iterable[str]:
    for name, curve in curves.items():
        yield format_curve(f"{section}.{name}", curve)


def _link(section: str, link: Link) -> Iterable[str]:
    yield f"\n[{section}]"
    yield from _entries(link, without=("collectives",))
    yield from _curves(f"{section}.collectives", link.collectives)


def _entries(curve: Any, without: tuple[str, ...] = ()) -> Iterable[str]:
    for entry in fields(curve):
        if entry.name not in without:
            yield f"{entry.name} = {_value(getattr(curve, entry.name))}"


def _value(value: Any) -> str:
    """One TOML value: numbers to five digits, strings as JSON writes them (TOML reads the same escapes)."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, int):
        return str(value)
    text = f"{value:.5g}"
    return text if any(mark in text for mark in ".en") else f"{text}.0"
