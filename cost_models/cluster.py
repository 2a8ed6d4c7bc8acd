"""Reads a cluster as people write it: ``h100:8``, ``a100-80gb:64x8@200Gbps``, ``cpu:4``, or a TOML file."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from pathlib import Path

from cost_models.profiles import Profile, ProfileError, builtin_profile, profile_names, read_profile
from cost_models.topology import AxisPath, Cluster, Link, joined_path, mesh_axes

__all__ = [
    "AxisPath",
    "Cluster",
    "ClusterDescriptionError",
    "Link",
    "joined_path",
    "mesh_axes",
    "parse_cluster",
    "smaller_clusters",
]

_FORM = re.compile(
    r"(?P<device>.+?):((?P<nodes>\d+)[x×])?(?P<devices>\d+)(@(?P<gbit>\d+(\.\d+)?)\s*gbps)?", re.IGNORECASE
)
_FORMS = (
    "accepted are DEVICE:DEVICES (h100:8), DEVICE:NODESxDEVICES (h100:2x8), "
    "with @200Gbps for the network of each device, and a TOML file"
)
_LINE_RATE_SHARE = 0.95  # NCCL on 4 nodes reaches 0.95 to 0.96 of the line rate (SimAI tables, GTC slides)


class ClusterDescriptionError(ValueError):
    """A cluster description that means nothing: names the text, the known profiles and the accepted forms."""


def parse_cluster(text: str) -> Cluster:
    """The cluster that ``text`` describes.

    ``DEVICE`` is a built-in profile or the path of a profile file. ``h100:16`` means whole nodes of the
    profile's usual size. Without ``@…Gbps`` the network is the profile's usual one. A TOML file gives
    ``device`` (a description as above, or a profile) and may replace ``nodes``, ``devices_per_node``,
    ``[intra]`` and ``[inter]``. Raises ``ClusterDescriptionError``.
    """
    text = text.strip()
    if text.lower().endswith(".toml"):
        return _from_file(Path(text))
    form = _FORM.fullmatch(text)
    if form is None:
        raise ClusterDescriptionError(
            f"cluster {text!r} is not understood: {_FORMS}{_hint(text.split(':')[0])}"
        )
    profile = _profile(form["device"], text)
    nodes, per_node = _shape(text, form["nodes"], int(form["devices"]), profile)
    inter = profile.inter if form["gbit"] is None else _network(float(form["gbit"]), profile.inter, text)
    return Cluster(text, profile.device, nodes, per_node, profile.intra, inter)


def smaller_clusters(cluster: Cluster) -> list[Cluster]:
    """Parts of a cluster, largest first: fewer nodes, whose number divides its own, then fewer devices of one node."""
    nodes = [count for count in range(cluster.nodes - 1, 0, -1) if cluster.nodes % count == 0]
    per_node = cluster.devices_per_node
    sizes = [(count, per_node) for count in nodes]
    sizes += [(1, count) for count in range(per_node - 1, 0, -1) if per_node % count == 0]
    return [
        replace(cluster, name=_resized(cluster.name, *size), nodes=size[0], devices_per_node=size[1])
        for size in sizes
    ]


def _resized(name: str, nodes: int, devices: int) -> str:
    """The name with other numbers, where it has any."""
    form = _FORM.fullmatch(name)
    if form is None:
        return name
    network = f"@{form['gbit']}Gbps" if form["gbit"] else ""
    return f"{form['device']}:{nodes}x{devices}{network}"


def _profile(device: str, text: str) -> Profile:
    try:
        if device.lower().endswith(".toml"):
            return read_profile(Path(device))
        return builtin_profile(device.lower())
    except KeyError:
        raise ClusterDescriptionError(f"cluster {text!r}: unknown device {device!r}{_hint(device)}") from None
    except ProfileError as error:
        raise ClusterDescriptionError(f"cluster {text!r}: {error}") from error


def _hint(device: str) -> str:
    """The closest profile if one is near, and all of them."""
    names = profile_names()
    near = difflib.get_close_matches(device.lower(), names, n=1)
    closest = f"; did you mean {near[0]}?" if near and near[0] != device.lower() else ""
    return f"{closest} (profiles: {', '.join(names)})"


def _shape(text: str, nodes: str | None, devices: int, profile: Profile) -> tuple[int, int]:
    """(nodes, devices per node)."""
    if devices < 1 or (nodes is not None and int(nodes) < 1):
        raise ClusterDescriptionError(f"cluster {text!r} has no devices: {_FORMS}")
    if nodes is not None:
        return int(nodes), devices
    usual = profile.devices_per_node
    if usual == 0 or devices <= usual:
        return 1, devices
    if devices % usual:
        raise ClusterDescriptionError(
            f"cluster {text!r}: {devices} devices are not whole nodes of {usual}; "
            f"write NODESxDEVICES, for example {profile.device.name}:{devices // usual + 1}x{usual}"
        )
    return devices // usual, usual


def _network(gbit_per_s: float, usual: Link, text: str) -> Link:
    if gbit_per_s <= 0:
        raise ClusterDescriptionError(f"cluster {text!r}: the network must be faster than 0 Gbit/s")
    return replace(
        usual,
        name=f"network {gbit_per_s:g} Gbit/s per device",
        bytes_per_s=gbit_per_s / 8 * 1e9 * _LINE_RATE_SHARE,
        source=f"as described, {_LINE_RATE_SHARE} of the line rate reached; latency of {usual.name}",
        collectives={},
    )


def _from_file(path: Path) -> Cluster:
    """A cluster file, or a profile file (then one node of its usual size, or one device)."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ClusterDescriptionError(f"cluster {str(path)!r}: {error}") from error
    if "device" not in table:
        profile = _profile(str(path), str(path))
        per_node = profile.devices_per_node or 1
        return Cluster(profile.device.name, profile.device, 1, per_node, profile.intra, profile.inter)
    return _cluster(path, table)


def _cluster(path: Path, table: dict[str, object]) -> Cluster:
    known = {"name", "device", "nodes", "devices_per_node", "intra", "inter"}
    if not set(table) <= known:
        raise ClusterDescriptionError(
            f"cluster {str(path)!r}: unknown entries {sorted(set(table) - known)}: known are {sorted(known)}"
        )
    device = str(table["device"])
    beside = path.parent / device
    profile = _profile(str(beside) if device.endswith(".toml") else device, str(path))
    try:
        return Cluster(
            name=str(table.get("name", path.stem)),
            device=profile.device,
            nodes=int(str(table.get("nodes", 1))),
            devices_per_node=int(str(table.get("devices_per_node", profile.devices_per_node or 1))),
            intra=_replaced(profile.intra, table.get("intra")),
            inter=_replaced(profile.inter, table.get("inter")),
        )
    except (TypeError, ValueError) as error:
        raise ClusterDescriptionError(f"cluster {str(path)!r}: {error}") from error


def _replaced(usual: Link, entry: object) -> Link:
    """The usual link, or the one that an ``[intra]`` or ``[inter]`` table describes."""
    if entry is None:
        return usual
    if not isinstance(entry, dict) or not {"latency_s", "bytes_per_s", "source"} <= set(entry):
        raise ValueError("a link needs latency_s, bytes_per_s and source")
    return Link(
        name=str(entry.get("name", "link")),
        latency_s=float(entry["latency_s"]),
        bytes_per_s=float(entry["bytes_per_s"]),
        source=str(entry["source"]),
    )
