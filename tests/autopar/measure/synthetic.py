"""Readings made by a known profile: what a perfect measurement of that device would have seen."""

from __future__ import annotations

import torch

from autopar.measure.attention import AttentionShape, work_of
from autopar.measure.collectives import COLLECTIVES, wire_bytes
from autopar.measure.readings import DeviceFacts, LinkReading, OperatorReading, Readings
from cost_models.operators import Work, operator_s
from cost_models.profiles import Profile

SIDES = (512, 1024, 2048, 4096, 8192)
MEMORY_FAMILIES = (
    "norm", "norm_backward", "elementwise", "activation", "rotary", "reduction", "embedding",
    "embedding_backward", "cross_entropy", "cross_entropy_backward", "copy", "optimizer",
)  # fmt: skip


def product(m: int, n: int, k: int, dtype: str = "bfloat16") -> Work:
    """One matrix product."""
    size = getattr(torch, dtype).itemsize
    return Work("matmul", 2.0 * m * n * k, size * (m * k + k * n), size * m * n, dtype, m=m, n=n, k=k)


def works() -> list[Work]:
    """A grid over all families."""
    products = [product(m, n, k) for m in SIDES for n in SIDES for k in SIDES]
    shapes = [AttentionShape(heads, seq, 64) for heads in (32, 128) for seq in (1024, 8192)]
    attention = [
        work_of(family, "bfloat16", shape, times)
        for shape in shapes
        for family, times in (("attention", 1.0), ("attention_backward", 2.5))
    ]
    memory = [
        Work(family, 0.0, moved / 2, moved / 2, "bfloat16")
        for family in MEMORY_FAMILIES
        for moved in (1e6, 1e8, 1e9)
    ]
    return [*products, *attention, *memory]


def readings_of(profile: Profile) -> Readings:
    """What measuring ``profile``'s own device without any noise gives."""
    device, link = profile.device, profile.intra
    operators = tuple(
        OperatorReading(work.family, work, operator_s(work, device).seconds, 0.0, 1) for work in works()
    )
    links = tuple(
        LinkReading(name, ranks, wire, link.collectives[name].seconds(wire, ranks))
        for name in COLLECTIVES
        for ranks in link.collectives[name].ranks
        for wire in (wire_bytes(name, ranks, 2**power) for power in range(10, 31, 2))
    )
    facts = DeviceFacts(
        "Synthetic GPU", "cuda", "2.11.0", "2026-11-23", 132, device.memory_bytes, device.context_bytes
    )
    return Readings(facts, operators, (), links, ())
