"""Meshes to try: how many devices on each axis, and who takes care of the parameters along it.

An axis is *data*-managed when no operator shards a parameter along it: the data-parallel engine then keeps
parameters replicated (``replicate``) or sharded at rest (``shard``) and sums their gradients. On a *model*
axis parameters rest as they are used, and the program converts the others itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from autopar.planner.pins import Pins
from autopar.planner.splits import divisors

__all__ = ["KINDS", "MODEL", "REPLICATE", "SHARD", "MeshAxis", "candidate_meshes"]

MODEL, REPLICATE, SHARD = "model", "replicate", "shard"


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis of a candidate mesh."""

    size: int
    kind: str
    """``model``, ``replicate`` or ``shard``."""
    role: str = ""
    """The pinned role (``tp``, ``cp``, ``dp_shard``…); empty where the search is free."""
    label: str = ""
    """What a free axis shards: ``batch`` wherever there is one, ``sequence`` or nothing; anything where empty."""

    @property
    def is_data(self) -> bool:
        return self.kind != MODEL


_ROLE_KINDS = {"dp_replicate": (REPLICATE,), "dp_shard": (SHARD,), "cp": (REPLICATE, SHARD), "tp": (MODEL,)}
_ROLE_ORDER = ("dp_replicate", "dp_shard", "cp", "tp")
KINDS = (REPLICATE, SHARD, MODEL)


def candidate_meshes(devices: int, pins: Pins, max_free_axes: int = 2) -> Iterator[tuple[MeshAxis, ...]]:
    """Every mesh of ``devices`` devices that the pins allow, outermost axis first.

    Pinned axes must divide the devices, and leave a role free where they do not take all of them.
    """
    pinned = [(role, pins.sizes[role]) for role in _ROLE_ORDER if pins.sizes.get(role, 1) > 1]
    taken = 1
    for _, size in pinned:
        taken *= size
    fixed = [[MeshAxis(size, kind, role) for kind in _kinds_of(role, pins)] for role, size in pinned]
    rest = devices // taken
    for sizes in _factorizations(rest, max(1, max_free_axes - len(pinned)) if pinned else max_free_axes):
        for free in product(*([MeshAxis(size, kind) for kind in _free_kinds(pins)] for size in sizes)):
            if _is_redundant(free):
                continue
            for axes in product(*fixed):
                yield (*free, *axes)


def _kinds_of(role: str, pins: Pins) -> tuple[str, ...]:
    kinds = _ROLE_KINDS[role]
    if role == "cp" and pins.zero is not None:
        return (SHARD,) if pins.zero else (REPLICATE,)
    return kinds


def _free_kinds(pins: Pins) -> tuple[str, ...]:
    """Kinds of the axes that no pin names; a pinned role is not free to appear a second time."""
    kinds = [kind for kind in KINDS if kind != MODEL or "tp" not in pins.sizes]
    if ("dp_replicate" in pins.sizes and "cp" in pins.sizes) or pins.zero:
        kinds = [kind for kind in kinds if kind != REPLICATE]
    if ("dp_shard" in pins.sizes and "cp" in pins.sizes) or pins.zero == 0:
        kinds = [kind for kind in kinds if kind != SHARD]
    return tuple(kinds)


def _is_redundant(axes: tuple[MeshAxis, ...]) -> bool:
    """True for the worse one of two orders: replicas outside shards, data outside model axes.

    The outer axes cross the slower links, and FSDP2 wants data axes outside tensor-parallel ones.
    """
    order = [KINDS.index(axis.kind) for axis in axes]
    return order != sorted(order)


def _factorizations(devices: int, max_axes: int) -> Iterator[tuple[int, ...]]:
    """``devices`` as products of at most ``max_axes`` sizes of at least 2."""
    if devices == 1:
        yield ()
        return
    yield (devices,)
    if max_axes >= 2:
        yield from ((outer, devices // outer) for outer in divisors(devices)[1:-1])
