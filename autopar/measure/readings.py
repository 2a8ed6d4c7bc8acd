"""What was measured, as it was measured: the file from which profiles are fitted, and fitted again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cost_models.operators import Work

__all__ = ["DeviceFacts", "HostReading", "LinkReading", "OperatorReading", "Readings", "Skipped"]


@dataclass(frozen=True, slots=True)
class OperatorReading:
    """One operator on the device."""

    name: str
    """What ran: ``linear``, ``rms_norm backward``…"""
    work: Work
    """What it did, in the terms in which cost models price it."""
    seconds: float
    """Median, behind other work in a filled queue, caches cold."""
    spread_s: float
    """Between the quartiles of the samples."""
    samples: int


@dataclass(frozen=True, slots=True)
class HostReading:
    """Host time to issue something, the device waiting."""

    name: str
    operators: int
    """Operators issued in that time."""
    seconds: float
    """Median."""
    low_s: float
    """10th percentile."""
    high_s: float
    """90th percentile."""


@dataclass(frozen=True, slots=True)
class LinkReading:
    """One collective inside one node."""

    collective: str
    ranks: int
    wire_bytes: float
    """What each rank puts on the wire (ring: (n−1)/n of the tensor, twice that for an all-reduce)."""
    seconds: float
    """Median, of the slowest rank."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that could not be measured."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the driver and torch say about the device."""

    name: str
    kind: str
    """``cuda`` or ``cpu``."""
    torch_version: str
    date: str
    """ISO date of the measurement."""
    multiprocessors: int
    """1 on a CPU."""
    memory_bytes: int
    context_bytes: int
    """In use after measuring, beside what the allocator holds."""
    communicator_bytes: int = 0
    """What the first collective of one process group took; 0 if not measured."""
    driver_bytes_per_s: float = 0.0
    """Memory clock × bus width × 2, as the driver gives them; 0 if it does not."""
    note: str = ""
    """Settings that matter: threads, tf32, attention's kernels."""

    @property
    def source(self) -> str:
        """Who says so, for every figure of a profile."""
        note = f" ({self.note})" if self.note else ""
        return f"measured {self.date} {self.name} torch {self.torch_version}{note}"


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything from one run on one machine."""

    facts: DeviceFacts
    operators: tuple[OperatorReading, ...]
    host: tuple[HostReading, ...]
    links: tuple[LinkReading, ...]
    skipped: tuple[Skipped, ...]
    wall_s: float = 0.0

    @property
    def summary(self) -> str:
        """How much was measured, in one line."""
        counts = f"{len(self.operators)} operators, {len(self.host)} host times, {len(self.links)} links"
        return f"{counts} in {self.wall_s:.0f} s on {self.facts.name}, {len(self.skipped)} skipped"

    def write(self, path: Path) -> None:
        """Write JSON, one reading per line."""
        table: Mapping[str, Any] = asdict(self)
        lists = [name for name, value in table.items() if isinstance(value, tuple)]
        heads = [f"{json.dumps(name)}: {json.dumps(table[name])}" for name in table if name not in lists]
        tails = [f"{json.dumps(name)}: {_lines(table[name])}" for name in lists]
        path.write_text("{\n" + ",\n".join(heads + tails) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Readings:
        """Read what ``write`` wrote."""
        table = json.loads(path.read_text(encoding="utf-8"))
        operators = [entry | {"work": Work(**entry["work"])} for entry in table["operators"]]
        return cls(
            facts=DeviceFacts(**table["facts"]),
            operators=tuple(OperatorReading(**entry) for entry in operators),
            host=tuple(HostReading(**entry) for entry in table["host"]),
            links=tuple(LinkReading(**entry) for entry in table["links"]),
            skipped=tuple(Skipped(**entry) for entry in table["skipped"]),
            wall_s=table["wall_s"],
        )


def _lines(entries: tuple[Any, ...]) -> str:
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]" if entries else "[]"
