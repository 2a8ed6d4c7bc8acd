"""From readings to a profile: each curve fitted to its family, errors stated in its source.

A figure that was not measured is taken from a base profile, with the source that it has there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopar.measure.collectives import by_collective
from autopar.measure.fresh_pages import FRESH_PAGES
from autopar.measure.host import BLOCKS, CHAINS, EAGER
from autopar.measure.readings import DeviceFacts, HostReading, LinkReading, OperatorReading, Readings
from autopar.measure.sustained import SUSTAINED
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
from cost_models.dtypes import dtype_bytes
from cost_models.fitting import (
    GPU_TILES,
    FusedCalls,
    Products,
    Vector,
    fit_attention,
    fit_attention_rates,
    fit_attention_tiles,
    fit_collective,
    fit_line,
    fit_matmul,
    fit_memory,
    fit_packed,
    rising,
)
from cost_models.profiles import Profile
from cost_models.topology import Link

__all__ = ["EMPTY_KERNEL", "fit_profile"]

EMPTY_KERNEL = "empty kernel"
"""Name of the reading of an almost empty kernel in a filled queue."""
LEAST_READINGS = 2
SIZES = 3
"""Sizes of products for which the loss inside a step is kept."""
FLOPS_PER_PAIR = {"attention": 4.0, "attention_backward": 10.0}
"""Two products forward, five backward."""
LEAST_BEYOND_CACHES_BYTES = 2**27
"""Moved bytes from which on a GPU's caches do not make a kernel look faster than its memory."""
PLAIN_FAMILIES = {
    "cuda": ("copy", "elementwise", "reduction"),
    "cpu": ("copy", "elementwise", "reduction", "optimizer"),
}
"""Kernels of which the fastest gives the memory's bandwidth, by kind of device."""
ASSUMED_LINK = Link("unknown", 1e-5, 1e10, "assumed: neither measured nor known for this device")


def fit_profile(readings: Readings, base: Profile | None = None, *, name: str = "") -> Profile:
    """The profile of the measured device.

    ``base`` fills what was not measured (datasheet peaks, the network); without it peaks are the best rates
    that were measured.
    """
    facts = readings.facts
    peaks, peak_sources = _peaks(readings, base)
    bandwidth, bandwidth_source = _peak_bandwidth(readings, base)
    products = _matmul_curves(readings, peaks, bandwidth)
    for dtype, curve in products.items():
        if isinstance(curve, PackedProducts):
            peaks[dtype] = curve.flops_per_s
            peak_sources[f"peak_flops_per_s.{dtype}"] = f"{facts.source}: rate of an endless product"
    figures, sources = _figures(readings, base)
    device = Device(
        name=name or (base.device.name if base else _slug(facts.name)),
        kind=facts.kind,
        memory_bytes=facts.memory_bytes,
        memory_bytes_per_s=bandwidth,
        peak_flops_per_s=peaks,
        matmul=_with_base(products, base, "matmul"),
        attention=_with_base(_attention_curves(readings), base, "attention"),
        families=_with_base(_memory_curves(readings, bandwidth), base, "families"),
        sources={
            "memory_bytes": facts.source,
            "memory_bytes_per_s": bandwidth_source,
            **sources,
            **peak_sources,
        },
        **figures,
    )
    return Profile(
        device=device,
        aliases=base.aliases if base and device.name == base.device.name else (),
        devices_per_node=base.devices_per_node if base else 0,
        intra=_intra(readings, base.intra if base else ASSUMED_LINK),
        inter=base.inter if base else ASSUMED_LINK,
    )


def _slug(name: str) -> str:
    return "-".join(name.lower().split())


def _with_base(fitted: Mapping[str, Any], base: Profile | None, field: str) -> dict[str, Any]:
    return {**(getattr(base.device, field) if base else {}), **fitted}


def _peaks(readings: Readings, base: Profile | None) -> tuple[dict[str, float], dict[str, str]]:
    """Datasheet peaks where the device is known, else the best product of each dtype."""
    best: dict[str, float] = {}
    for reading in readings.operators:
        if reading.work.family == "matmul":
            rate = reading.work.flops / reading.seconds
            best[reading.work.dtype] = max(rate, best.get(reading.work.dtype, 0.0))
    if base and readings.facts.kind == "cpu":
        known = {**base.device.peak_flops_per_s, **best}
    elif base:
        known = {
            dtype: max(rate, best.get(dtype, 0.0)) for dtype, rate in base.device.peak_flops_per_s.items()
        }
    else:
        known = best if "float32" in best else {**best, "float32": max(best.values(), default=1e9)}
    sources = {
        f"peak_flops_per_s.{dtype}": f"{readings.facts.source}: best product"
        if not base or rate != base.device.peak(dtype)
        else base.device.sources[f"peak_flops_per_s.{dtype}"]
        for dtype, rate in known.items()
    }
    return known, sources


def _peak_bandwidth(readings: Readings, base: Profile | None) -> tuple[float, str]:
    """The driver's figure, else the base's, and never below what a kernel reached."""
    facts = readings.facts
    candidates = [
        (reading.work.moved_bytes / reading.seconds, f"{facts.source}: {reading.name}")
        for reading in readings.operators
        if reading.work.family in PLAIN_FAMILIES[facts.kind]
        and (facts.kind == "cpu" or reading.work.moved_bytes >= LEAST_BEYOND_CACHES_BYTES)
    ]
    if base and not (facts.kind == "cpu" and candidates):
        candidates.append((base.device.memory_bytes_per_s, base.device.sources["memory_bytes_per_s"]))
    elif facts.driver_bytes_per_s:
        candidates.append((facts.driver_bytes_per_s, "driver: memory clock × bus width × 2"))
    return max(candidates, default=(1e10, "assumed: not measured"))


def _figures(readings: Readings, base: Profile | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain figures, measured where they were."""
    facts = readings.facts
    found: dict[str, tuple[float, str]] = {"context_bytes": (facts.context_bytes, facts.source)}
    if facts.communicator_bytes:
        found["communicator_bytes"] = (facts.communicator_bytes, f"{facts.source}: first all-reduce")
    for reading in readings.operators:
        if reading.name == EMPTY_KERNEL:
            found["kernel_launch_s"] = (reading.seconds, f"{facts.source}: sum of 8 elements, filled queue")
    found.update(_host_figures(readings.host, facts))
    pages = [reading for reading in readings.operators if reading.name.startswith(FRESH_PAGES)]
    if pages:
        rate = sum(r.work.written_bytes for r in pages) / sum(max(r.seconds, 1e-9) for r in pages)
        found["fresh_bytes_per_s"] = (rate, f"{facts.source}: zeros in new tensors, less zeros in old ones")
    unmeasured = {
        "kernel_launch_s": 5e-6, "host_dispatch_s": 2e-5, "communicator_bytes": 0, "overlap_slowdown": 1.1
    }  # fmt: skip
    for name, assumed in unmeasured.items():
        if name not in found and base:
            found[name] = (getattr(base.device, name), base.device.sources[name])
        found.setdefault(name, (assumed, "assumed: not measured"))
    return {name: value for name, (value, _) in found.items()}, {
        name: source for name, (_, source) in found.items()
    }


def _host_figures(readings: Sequence[HostReading], facts: DeviceFacts) -> dict[str, tuple[float, str]]:
    """Per operator in eager mode; per call and per kernel of compiled regions, from chains of two lengths."""
    figures = {}
    eager = [reading for reading in readings if reading.name == EAGER]
    if eager:
        low_s = min(reading.low_s / reading.operators for reading in eager)
        high_s = max(reading.high_s / reading.operators for reading in eager)
        bounds = f"10th to 90th percentile {low_s:.3g} to {high_s:.3g} s"
        source = f"{facts.source}: chain of linear layers and GELU, {bounds}, hosts: {len(eager)}"
        middle_s = statistics.mean(reading.seconds / reading.operators for reading in eager)
        figures["host_dispatch_s"] = (middle_s, source)
    chains = [reading for reading in readings if reading.name in CHAINS]
    if len(chains) >= 2 * len(CHAINS):
        columns = np.array([[1.0, float(reading.operators)] for reading in chains])
        call_s, kernel_s = fit_line(columns, np.array([reading.seconds for reading in chains]))
        source = f"{facts.source}: compiled chains of linear layers and GELU, two lengths, both passes"
        figures["compiled_call_s"] = (float(call_s), source)
        figures["compiled_kernel_s"] = (float(kernel_s), source)
        blocks = [reading for reading in readings if reading.name in BLOCKS and reading.operators > 1]
        if blocks:
            rest_s = sum(reading.seconds for reading in blocks) - len(blocks) * float(call_s)
            of_block_s = rest_s / sum(reading.operators for reading in blocks)
            source = f"{source}; kernels of a compiled Llama block"
            figures["compiled_kernel_s"] = (max(float(kernel_s), of_block_s), source)
    return figures


def _matmul_curves(
    readings: Readings, peaks: Mapping[str, float], bandwidth: float
) -> dict[str, MatmulCurve | PackedProducts]:
    facts = readings.facts
    curves: dict[str, MatmulCurve | PackedProducts] = {}
    single = [reading for reading in readings.operators if not reading.name.startswith(SUSTAINED)]
    for dtype, chosen in _grouped(single, lambda reading: reading.work.dtype, "matmul").items():
        if len(chosen) <= 4 + len(GPU_TILES):
            continue
        if facts.kind == "cpu":
            packed, fit = fit_packed(_products(chosen, dtype))
            curves[dtype] = replace(packed, source=f"{facts.source}, inside other work: {fit}")
            continue
        curve, fit = fit_matmul(
            _products(chosen, dtype),
            units=facts.multiprocessors,
            tiles=GPU_TILES,
            peak_flops_per_s=peaks[dtype],
            memory_bytes_per_s=bandwidth,
        )
        curve = replace(curve, source=f"{facts.source}, inside other work: {fit}")
        curves[dtype] = _settled(curve, dtype, readings)
    return curves


def _settled(curve: MatmulCurve, dtype: str, readings: Readings) -> MatmulCurve:
    """The curve with what products lose when power and clocks have settled, by size."""
    chosen = sorted(
        (r for r in readings.operators if r.name.startswith(SUSTAINED) and r.work.dtype == dtype),
        key=lambda reading: reading.work.flops,
    )
    if len(chosen) < 2 * SIZES:
        return curve
    groups = [chosen[at * len(chosen) // SIZES : (at + 1) * len(chosen) // SIZES] for at in range(SIZES)]
    ratios = [statistics.median(_ratio(reading, curve) for reading in group) for group in groups]
    return replace(
        curve,
        step_slowdown_flops=tuple(statistics.median(r.work.flops for r in group) for group in groups),
        step_slowdown=tuple(max(ratio, 1.0) for ratio in ratios),
        source=f"{curve.source}; step_slowdown: {len(chosen)} products for seconds without a pause",
    )


def _ratio(reading: OperatorReading, curve: MatmulCurve) -> float:
    work = reading.work
    return reading.seconds / curve.burst_s(work.m, work.n, work.k, batch=work.batch)


def _products(readings: Sequence[OperatorReading], dtype: str) -> Products:
    def column(name: str) -> Vector:
        return np.array([float(getattr(reading.work, name)) for reading in readings])

    seconds = np.array([reading.seconds for reading in readings])
    return Products(column("m"), column("n"), column("k"), seconds, column("batch"), dtype_bytes(dtype))


def _attention_curves(readings: Readings) -> dict[str, AttentionCurve | AttentionRates | AttentionTiles]:
    curves: dict[str, AttentionCurve | AttentionRates | AttentionTiles] = {}
    for family in ("attention", "attention_backward"):
        chosen = [reading for reading in readings.operators if reading.work.family == family]
        if len(chosen) >= LEAST_READINGS:
            works = [reading.work for reading in chosen]
            calls = FusedCalls(
                np.array([work.flops for work in works]),
                np.array([float(work.seq) for work in works]),
                np.array([float(work.head_dim) for work in works]),
                np.array([reading.seconds for reading in chosen]),
                np.array([float(work.queries or work.heads * work.seq) for work in works]),
            )
            pairs, is_cuda = FLOPS_PER_PAIR[family], readings.facts.kind == "cuda"
            found = (
                fit_attention_tiles(calls, flops_per_pair=pairs) if is_cuda else fit_attention_rates(calls)
            )
            curve, fit = found or fit_attention(calls)
            curves[family] = replace(curve, source=f"{readings.facts.source}, inside other work: {fit}")
    return curves


def _memory_curves(readings: Readings, bandwidth: float) -> dict[str, MemoryCurve]:
    facts, curves = readings.facts, {}
    others = [
        reading
        for reading in readings.operators
        if reading.work.family != "matmul" and not reading.work.family.startswith("attention")
    ]
    for family, chosen in _grouped(others, lambda reading: reading.work.family).items():
        if len(chosen) < LEAST_READINGS or family == "free":
            continue
        moved = np.array([reading.work.moved_bytes for reading in chosen])
        kernels = np.array([float(reading.work.kernels) for reading in chosen])
        curve, fit = fit_memory(moved, kernels, np.array([reading.seconds for reading in chosen]))
        rate = min(curve.bytes_per_s, bandwidth)
        curves[family] = replace(curve, bytes_per_s=rate, source=f"{facts.source}, inside other work: {fit}")
    return curves


def _grouped(
    readings: Sequence[OperatorReading], key: Callable[[OperatorReading], str], family: str = ""
) -> dict[str, list[OperatorReading]]:
    groups: dict[str, list[OperatorReading]] = {}
    for reading in readings:
        if reading.seconds > 0 and family in ("", reading.work.family):
            groups.setdefault(key(reading), []).append(reading)
    return groups


def _intra(readings: Readings, base: Link) -> Link:
    """The base's link with the measured collectives in place of its own."""
    described = _collective_table if readings.facts.kind == "cpu" else _collective_curve
    curves = {
        collective: described(groups, readings.facts)
        for collective, groups in by_collective(readings.links).items()
    }
    if not curves:
        return base
    latency_s, rate = _hop(readings.links)
    return Link(
        name=base.name,
        latency_s=latency_s,
        bytes_per_s=rate,
        source=f"{readings.facts.source}: send, or half an all-reduce, between two",
        collectives={**base.collectives, **curves},
    )


def _hop(links: Sequence[LinkReading]) -> tuple[float, float]:
    """(seconds of the shortest message, bandwidth of the longest) between two ranks."""
    pairs = sorted((link for link in links if link.ranks == 2), key=lambda link: link.wire_bytes)
    sends = [link for link in pairs if link.collective == "send"] or pairs
    return sends[0].seconds, sends[-1].wire_bytes / sends[-1].seconds


def _collective_table(groups: Mapping[int, Sequence[LinkReading]], facts: DeviceFacts) -> CollectiveTable:
    return CollectiveTable(
        tuple(groups),
        tuple(tuple(link.wire_bytes for link in group) for group in groups.values()),
        tuple(rising([link.seconds for link in group]) for group in groups.values()),
        source=facts.source,
    )


def _collective_curve(groups: Mapping[int, Sequence[LinkReading]], facts: DeviceFacts) -> CollectiveCurve:
    rows, errors = [], []
    for group in groups.values():
        wire = np.array([link.wire_bytes for link in group])
        point, fit = fit_collective(wire, np.array([link.seconds for link in group]))
        rows.append(tuple(float(value) for value in point))
        errors.append(fit.median)
    latency, ramp, half, rate = zip(*rows, strict=True)
    worst = (
        f"median |error| {max(errors):.1%} at worst over ranks, {statistics.median(errors):.1%} in the middle"
    )
    return CollectiveCurve(tuple(groups), latency, ramp, half, rate, source=f"{facts.source}: {worst}")
