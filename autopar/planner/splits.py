"""Every way to split devices into ranks of each kind, as far as pins leave it open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

from autopar.planner.pins import Pins

__all__ = ["Split", "divisors", "splits"]


@dataclass(frozen=True, slots=True)
class Split:
    """Ranks of every kind; their product is the cluster."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    @property
    def data_ranks(self) -> int:
        return self.dp_replicate * self.dp_shard


def splits(devices: int, pins: Pins) -> Iterator[Split]:
    """Splits of ``devices`` with the pinned sizes."""
    sizes = {**pins.sizes} if pins.pp is None else {**pins.sizes, "pp": pins.pp}
    for pp in _sizes(devices, sizes.get("pp")):
        for dp_replicate in _sizes(devices // pp, sizes.get("dp_replicate")):
            rest = devices // (pp * dp_replicate)
            for dp_shard in _sizes(rest, sizes.get("dp_shard")):
                for cp in _sizes(rest // dp_shard, sizes.get("cp")):
                    for tp in _sizes(rest // (dp_shard * cp), sizes.get("tp")):
                        if dp_shard * cp * tp == rest:
                            yield Split(pp, dp_replicate, dp_shard, cp, tp)


def _sizes(devices: int, pinned: int | None) -> Iterator[int]:
    """Divisors of ``devices``, or the pinned one of them."""
    if pinned is None:
        yield from divisors(devices)
    elif devices % pinned == 0:
        yield pinned


def divisors(number: int) -> list[int]:
    """Everything that divides ``number``, ascending."""
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return small + [number // size for size in reversed(small) if size * size != number]
