"""Reads device profiles: TOML files in which every figure carries its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cost_models.curves import (
    AttentionCurve,
    AttentionRates,
    AttentionTiles,
    CollectiveCurve,
    CollectiveTable,
    MatmulCurve,
    MemoryCurve,
    PackedProducts,
)
from cost_models.device import Device
from cost_models.topology import Link

__all__ = ["Profile", "ProfileError", "builtin_profile", "parse_profile", "profile_names", "read_profile"]

_FOLDER = Path(__file__).parent / "profiles"
_FIGURES = {
    "memory_bytes": int,
    "memory_bytes_per_s": float,
    "kernel_launch_s": float,
    "host_dispatch_s": float,
    "compiled_call_s": float,
    "compiled_kernel_s": float,
    "fresh_bytes_per_s": float,
    "context_bytes": int,
    "communicator_bytes": int,
    "overlap_slowdown": float,
}
_SECTIONS = {
    "name", "aliases", "kind", "devices_per_node", "figures", "peak_flops_per_s",
    "matmul", "attention", "memory_bound", "intra", "inter",
}  # fmt: skip


class ProfileError(ValueError):
    """A profile that cannot be read: names the file, the entry and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A device together with its usual surroundings."""

    device: Device
    aliases: tuple[str, ...]
    devices_per_node: int
    """In the usual machine with this device; 0 when there is no usual number."""
    intra: Link
    inter: Link


def read_profile(path: Path) -> Profile:
    """The profile in a TOML file. Raises ``ProfileError`` when it is missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"profile {path}: {error}") from error
    return parse_profile(text, str(path))


def parse_profile(text: str, where: str) -> Profile:
    """The profile that TOML text describes; ``where`` names it in errors. Raises ``ProfileError``."""
    try:
        return _profile(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"profile {where}: {error}") from error
    except KeyError as error:
        raise ProfileError(f"profile {where}: entry {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"profile {where}: {error}") from error


def profile_names() -> tuple[str, ...]:
    """Names and aliases of the profiles that come with this package, sorted."""
    return tuple(sorted(_paths()))


def builtin_profile(name: str) -> Profile:
    """The profile that comes with this package under ``name`` or an alias. Raises ``KeyError`` if unknown."""
    return _read_builtin(_paths()[name])


@lru_cache(maxsize=1)
def _paths() -> Mapping[str, Path]:
    paths = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for name in (table["name"], *table.get("aliases", ())):
            paths[name] = path
    return paths


_read_builtin = lru_cache(maxsize=None)(read_profile)


def _profile(table: Mapping[str, Any]) -> Profile:
    unknown = sorted(set(table) - _SECTIONS)
    if unknown:
        raise ValueError(f"unknown entries {unknown}: known are {sorted(_SECTIONS)}")
    return Profile(
        device=_device(table),
        aliases=tuple(table.get("aliases", ())),
        devices_per_node=int(table.get("devices_per_node", 0)),
        intra=_link(table["intra"]),
        inter=_link(table["inter"]),
    )


def _device(table: Mapping[str, Any]) -> Device:
    figures, sources = _figures(table["figures"], "")
    peaks, peak_sources = _figures(table["peak_flops_per_s"], "peak_flops_per_s.")
    unknown = sorted(set(figures) - set(_FIGURES))
    if unknown:
        raise ValueError(f"unknown figures {unknown}: known are {sorted(_FIGURES)}")
    return Device(
        name=table["name"],
        kind=table["kind"],
        peak_flops_per_s=peaks,
        matmul={dtype: _matmul(entry) for dtype, entry in table.get("matmul", {}).items()},
        attention={name: _attention(entry) for name, entry in table.get("attention", {}).items()},
        families={name: MemoryCurve(**entry) for name, entry in table.get("memory_bound", {}).items()},
        sources=sources | peak_sources,
        **{name: _FIGURES[name](value) for name, value in figures.items()},
    )


def _figures(entries: Mapping[str, Any], prefix: str) -> tuple[dict[str, float], dict[str, str]]:
    """Values and sources of entries written ``name = { value = …, source = "…" }``."""
    for name, entry in entries.items():
        if not (isinstance(entry, dict) and set(entry) == {"value", "source"} and entry["source"]):
            raise ValueError(f"{prefix}{name} must be {{ value = …, source = … }}, it is {entry!r}")
    values = {name: entry["value"] for name, entry in entries.items()}
    return values, {prefix + name: entry["source"] for name, entry in entries.items()}


def _matmul(entry: Mapping[str, Any]) -> MatmulCurve | PackedProducts:
    if "tiles" not in entry:
        return PackedProducts(**entry)
    lists = {"tile_efficiency", "step_slowdown_flops", "step_slowdown"}
    fields = {name: tuple(value) if name in lists else value for name, value in entry.items()}
    return MatmulCurve(**(fields | {"tiles": tuple((rows, columns) for rows, columns in entry["tiles"])}))


def _attention(entry: Mapping[str, Any]) -> AttentionCurve | AttentionRates | AttentionTiles:
    if isinstance(entry["flops_per_s"][0], list):
        rates = tuple(map(tuple, entry["flops_per_s"]))
        return AttentionRates(tuple(entry["head_dim"]), tuple(entry["seq"]), rates, entry["source"])
    if "flops_per_pair" in entry:
        lists: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
        return AttentionTiles(**lists)
    fields = {"seq": tuple(entry["seq"]), "flops_per_s": tuple(entry["flops_per_s"])}
    return AttentionCurve(**(dict(entry) | fields))


def _link(entry: Mapping[str, Any]) -> Link:
    curves = {name: _collective(value) for name, value in entry.get("collectives", {}).items()}
    fields = {name: value for name, value in entry.items() if name != "collectives"}
    return Link(**fields, collectives=curves)


def _collective(entry: Mapping[str, Any]) -> CollectiveCurve | CollectiveTable:
    if "seconds_s" in entry:
        return _table(entry)
    lists = ("ranks", "latency_s", "ramp_s", "ramp_bytes", "bytes_per_s")
    if len({len(entry[name]) for name in lists}) != 1:
        raise ValueError(f"a collective's {', '.join(lists)} must have one entry per number of ranks")
    return CollectiveCurve(source=entry["source"], **{name: tuple(entry[name]) for name in lists})


def _table(entry: Mapping[str, Any]) -> CollectiveTable:
    wire_bytes, seconds_s = (tuple(map(tuple, entry[name])) for name in ("wire_bytes", "seconds_s"))
    if [*map(len, wire_bytes)] != [*map(len, seconds_s)] or len(wire_bytes) != len(entry["ranks"]):
        raise ValueError(
            "a collective's wire_bytes and seconds_s must have one row per number of ranks, equally long"
        )
    return CollectiveTable(tuple(entry["ranks"]), wire_bytes, seconds_s, entry["source"])
