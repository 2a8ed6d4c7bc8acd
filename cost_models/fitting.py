"""Fits the curves of a device profile to measured seconds, and says how well each describes them.

Errors are relative everywhere: a small operator that is 10 % off weighs as much as a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.curves import (
    CAUSAL_SHARE,
    AttentionCurve,
    AttentionRates,
    AttentionTiles,
    MatmulCurve,
    MemoryCurve,
    PackedProducts,
)

__all__ = [
    "GPU_TILES",
    "Fit",
    "FusedCalls",
    "Products",
    "Vector",
    "fit_attention",
    "fit_attention_rates",
    "fit_attention_tiles",
    "fit_collective",
    "fit_line",
    "fit_matmul",
    "fit_memory",
    "fit_packed",
    "nelder_mead",
    "rising",
]

Vector = NDArray[np.float64]

GPU_TILES = ((256, 128), (128, 64), (64, 64))
"""Tile shapes (m, n) of the matrix products of tensor-core libraries."""

LEAST_RAMP_READINGS = 6
"""Sizes of a collective from which on its four numbers are fitted."""

LARGEST_RAMP_MB = 100.0
"""Beyond it a ramp is no change of protocol but a slope."""

DIAGONALS = (0.0, 64.0, 128.0, 192.0, 256.0, 384.0)
"""Candidates for ``AttentionTiles.diagonal``."""

LEAST_CALLS_OF_A_WIDTH = 8
"""Calls with heads of one width from which on its five numbers are fitted."""

WIDE_GAINS = np.arange(0.8, 2.25, 0.05)
"""Candidates for ``AttentionCurve.wide_gain``."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a curve describes the readings it was fitted on."""

    readings: int
    median: float
    """Median of |predicted / measured − 1|."""
    p90: float
    """Its 90th percentile."""

    @classmethod
    def of(cls, predicted_s: Vector, measured_s: Vector) -> Fit:
        """The errors of ``predicted_s`` against ``measured_s``, one entry per reading."""
        error = np.abs(predicted_s / measured_s - 1.0)
        return cls(len(error), float(np.median(error)), float(np.percentile(error, 90)))

    def __str__(self) -> str:
        return f"{self.readings} readings, median |error| {self.median:.1%}, 90th percentile {self.p90:.1%}"


@dataclass(frozen=True, slots=True)
class Products:
    """Measured matrix products: ``batch`` times ``m × k @ k × n`` (elements) and their seconds."""

    m: Vector
    n: Vector
    k: Vector
    seconds: Vector
    batch: Vector
    element_bytes: float = 2.0

    @property
    def flops(self) -> Vector:
        """Multiplications and additions of each product."""
        flops: Vector = 2.0 * self.batch * self.m * self.n * self.k
        return flops


@dataclass(frozen=True, slots=True)
class FusedCalls:
    """Measured calls of fused attention: FLOPs, keys of a sequence, width of a head, rows of queries, seconds."""

    flops: Vector
    seq: Vector
    head_dim: Vector
    seconds: Vector
    queries: Vector | None = None


def nelder_mead(loss: Callable[[Vector], float], start: Vector, *, iterations: int = 800) -> Vector:
    """The best point found by the simplex method of Nelder and Mead (1965) from ``start``."""
    simplex = [start, *(start + 0.2 * start[i] * np.eye(len(start))[i] for i in range(len(start)))]
    values = [loss(point) for point in simplex]
    for _ in range(iterations):
        order = np.argsort(values)
        simplex, values = [simplex[i] for i in order], [values[i] for i in order]
        _improve(loss, simplex, values)
    best: Vector = simplex[int(np.argmin(values))]
    return best


def _improve(loss: Callable[[Vector], float], simplex: list[Vector], values: list[float]) -> None:
    """One step on a sorted simplex: reflect, expand, contract or shrink."""
    centre = np.mean(simplex[:-1], axis=0)
    away = centre - simplex[-1]
    candidates = [centre + away]
    reflected = loss(candidates[0])
    if reflected < values[0]:
        candidates.append(centre + 2.0 * away)
    elif reflected >= values[-2]:
        candidates.append(centre - 0.5 * away)
    losses = [reflected, *map(loss, candidates[1:])]
    best = int(np.argmin(losses))
    if losses[best] < values[-1]:
        simplex[-1], values[-1] = candidates[best], losses[best]
        return
    for i in range(1, len(simplex)):
        simplex[i] = simplex[0] + 0.5 * (simplex[i] - simplex[0])
        values[i] = loss(simplex[i])


def fit_matmul(
    products: Products,
    *,
    units: int,
    tiles: Sequence[tuple[int, int]],
    peak_flops_per_s: float,
    memory_bytes_per_s: float,
) -> tuple[MatmulCurve, Fit]:
    """The curve through ``products``, its rates below the two peaks; ``source`` is left empty.

    The curve's ``step_slowdown`` is 1: it describes the circumstances under which the products were measured.
    """

    def curve(point: Vector) -> MatmulCurve:
        fixed_us, rate, overhead, split, memory, *efficiency = (float(value) for value in point)
        return MatmulCurve(
            fixed_s=fixed_us * 1e-6,
            flops_per_s=rate * peak_flops_per_s,
            units=units,
            tiles=tuple(tiles),
            tile_efficiency=(1.0, *efficiency),
            k_overhead=overhead,
            wave_split=split,
            memory_bytes_per_s=memory * memory_bytes_per_s,
            step_slowdown_flops=(1e9,),
            step_slowdown=(1.0,),
            source="",
        )

    def loss(point: Vector) -> float:
        if point.min() < 0 or point[1] > 1 or point[3] > 1 or point[4] > 1 or not _are_shares(point[5:]):
            return 1e9
        error = np.abs(np.log(matmul_s(products, curve(point)) / products.seconds))
        return float(np.mean(np.minimum(error, 0.5)) + 0.3 * np.percentile(error, 90))

    start = np.array([3.0, 0.85, 100.0, 0.5, 0.7, 0.9, 0.7, 0.6][: 4 + len(tiles)])
    best = curve(nelder_mead(loss, start))
    return best, Fit.of(matmul_s(products, best), products.seconds)


def fit_packed(products: Products) -> tuple[PackedProducts, Fit]:
    """The curve of a CPU through ``products``; ``source`` is left empty."""
    elements = products.m * products.k + products.k * products.n + products.m * products.n
    columns = np.stack(
        [products.batch, products.flops, products.batch * products.element_bytes * elements], axis=1
    )
    fixed_s, s_per_flop, s_per_byte = (float(value) for value in fit_line(columns, products.seconds))
    curve = PackedProducts(fixed_s, 1.0 / max(s_per_flop, 1e-18), 1.0 / max(s_per_byte, 1e-18), source="")
    return curve, Fit.of(columns @ np.array([fixed_s, s_per_flop, s_per_byte]), products.seconds)


def _are_shares(efficiency: Vector) -> bool:
    return not len(efficiency) or bool(efficiency.min() >= 0.2 and efficiency.max() <= 1.0)


def matmul_s(products: Products, curve: MatmulCurve) -> Vector:
    """``MatmulCurve.burst_s`` on arrays."""
    waves_s = np.full_like(products.m, np.inf)
    for tile, share in zip(curve.tiles, curve.tile_efficiency, strict=True):
        for rows, columns in (tile, tile[::-1]):
            tiles = products.batch * np.ceil(products.m / rows) * np.ceil(products.n / columns)
            whole = np.ceil(tiles / curve.units)
            waves = curve.wave_split * np.maximum(tiles / curve.units, 1.0) + (1 - curve.wave_split) * whole
            tile_flops = 2.0 * rows * columns * (products.k + curve.k_overhead)
            waves_s = np.minimum(waves_s, waves * tile_flops * curve.units / (curve.flops_per_s * share))
    elements = products.m * products.k + products.k * products.n + products.m * products.n
    memory_s = products.element_bytes * products.batch * elements / curve.memory_bytes_per_s
    seconds: Vector = curve.fixed_s + (waves_s**4 + memory_s**4) ** 0.25
    return seconds


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest sequence that never falls, in logarithms (pool adjacent violators; Ayer et al., 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = float(np.log(value)), 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, others = pools.pop()
            total, count = total + before, count + others
        pools.append((total, count))
    return tuple(float(np.exp(total / count)) for total, count in pools for _ in range(count))


def fit_line(columns: Vector, seconds: Vector) -> Vector:
    """Non-negative coefficients of ``columns`` (readings × terms) with the least relative error.

    Ordinary least squares of ``columns / seconds`` on 1; a term that comes out negative is left out.
    """
    active = list(range(columns.shape[1]))
    while True:
        scaled = columns[:, active] / seconds[:, None]
        found, *_ = np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=None)
        if found.min() >= 0 or len(active) == 1:
            break
        del active[int(np.argmin(found))]
    coefficients = np.zeros(columns.shape[1])
    coefficients[active] = np.maximum(found, 0.0)
    return coefficients


def fit_memory(moved_bytes: Vector, kernels: Vector, seconds: Vector) -> tuple[MemoryCurve, Fit]:
    """The curve through kernels bound by memory; ``source`` is left empty."""
    columns = np.stack([kernels, moved_bytes], axis=1)
    fixed_s, s_per_byte = fit_line(columns, seconds)
    curve = MemoryCurve(float(fixed_s), float(1.0 / max(s_per_byte, 1e-18)), source="")
    return curve, Fit.of(columns @ np.array([fixed_s, s_per_byte]), seconds)


def fit_attention(calls: FusedCalls, *, head_dim: int = 64) -> tuple[AttentionCurve, Fit]:
    """The curve through fused attention with a rate at each measured sequence length; ``source`` is empty.

    For a given ``wide_gain`` the seconds are linear in the inverse rates; the gain is the best of a grid.
    """
    lengths = np.unique(calls.seq)
    curves = [_attention_with_gain(calls, lengths, head_dim, float(gain)) for gain in WIDE_GAINS]
    fits = [Fit.of(_attention_s(calls, curve), calls.seconds) for curve in curves]
    best = min(range(len(fits)), key=lambda index: fits[index].median + 0.3 * fits[index].p90)
    return curves[best], fits[best]


def _attention_with_gain(calls: FusedCalls, lengths: Vector, head_dim: int, gain: float) -> AttentionCurve:
    unit = AttentionCurve(0.0, (1.0,), (1.0,), head_dim, gain, source="")
    at_one = np.array(
        [
            unit.seconds(flops, seq=1, head_dim=int(width), kernels=0)
            for flops, width in zip(calls.flops, calls.head_dim, strict=True)
        ]
    )
    columns = np.stack(
        [np.ones_like(at_one), *(np.where(calls.seq == length, at_one, 0.0) for length in lengths)], axis=1
    )
    fixed_s, *s_per_flop = fit_line(columns, calls.seconds)
    known = [index for index, value in enumerate(s_per_flop) if value > 0]
    return replace(
        unit,
        fixed_s=float(fixed_s),
        seq=tuple(float(lengths[index]) for index in known),
        flops_per_s=tuple(float(1.0 / s_per_flop[index]) for index in known),
    )


def _attention_s(calls: FusedCalls, curve: AttentionCurve | AttentionRates) -> Vector:
    return np.array(
        [
            curve.seconds(flops, seq=int(seq), head_dim=int(width), kernels=1)
            for flops, seq, width in zip(calls.flops, calls.seq, calls.head_dim, strict=True)
        ]
    )


def fit_attention_rates(calls: FusedCalls) -> tuple[AttentionRates, Fit] | None:
    """The rate of every width of heads and every length; None where the grid has holes. ``source`` is empty."""
    widths = [int(width) for width in np.unique(calls.head_dim)]
    lengths = [int(length) for length in np.unique(calls.seq)]
    groups = [[(calls.head_dim == width) & (calls.seq == length) for length in lengths] for width in widths]
    if not all(group.any() for row in groups for group in row):
        return None
    rates = tuple(
        tuple(float(np.exp(np.mean(np.log(calls.flops[group] / calls.seconds[group])))) for group in row)
        for row in groups
    )
    curve = AttentionRates(tuple(widths), tuple(lengths), rates, source="")
    return curve, Fit.of(_attention_s(calls, curve), calls.seconds)


def fit_attention_tiles(calls: FusedCalls, *, flops_per_pair: float) -> tuple[AttentionTiles, Fit] | None:
    """The curve through fused attention by width of heads; None where no width has enough calls."""
    widths = [
        float(width)
        for width in np.unique(calls.head_dim)
        if np.sum(calls.head_dim == width) >= LEAST_CALLS_OF_A_WIDTH
    ]
    if not widths or calls.queries is None:
        return None
    found = [_tiles_of_width(calls, width, flops_per_pair) for width in widths]
    columns = np.array([point for point, _, _ in found])
    curve = AttentionTiles(
        tuple(int(width) for width in widths),
        fixed_s=tuple(map(float, columns[:, 0])),
        flops_per_s=tuple(float(1.0 / max(value, 1e-18)) for value in columns[:, 1]),
        diagonal=tuple(float(diagonal) for _, diagonal, _ in found),
        query_s=tuple(map(float, columns[:, 2])),
        key_s=tuple(map(float, columns[:, 3])),
        flops_per_pair=flops_per_pair,
        source="",
    )
    error = np.concatenate([each for _, _, each in found])
    return curve, Fit(len(error), float(np.median(error)), float(np.percentile(error, 90)))


def _tiles_of_width(calls: FusedCalls, width: float, flops_per_pair: float) -> tuple[Vector, float, Vector]:
    """(coefficients of 1, FLOPs, queries and keys; diagonal; errors) of the calls of one width."""
    assert calls.queries is not None
    chosen = calls.head_dim == width
    flops, seq, queries = calls.flops[chosen], calls.seq[chosen], calls.queries[chosen]
    seconds = calls.seconds[chosen]
    is_causal = flops < CAUSAL_SHARE * flops_per_pair * width * queries * seq
    tried = []
    for diagonal in DIAGONALS:
        whole = flops * (1.0 + np.where(is_causal, diagonal / seq, 0.0))
        columns = np.stack([np.ones_like(flops), whole, queries, seq], axis=1)
        point = fit_line(columns, seconds)
        tried.append((point, diagonal, np.abs(columns @ point / seconds - 1.0)))
    return min(tried, key=lambda each: float(np.mean(each[2])))


def fit_collective(wire_bytes: Vector, seconds: Vector) -> tuple[Vector, Fit]:
    """``(latency_s, ramp_s, ramp_bytes, bytes_per_s)`` of a ``CollectiveCurve`` for one number of ranks.

    ``wire_bytes``, ascending, is what each rank puts on the wire. Few sizes give a straight line: no ramp.
    """
    if len(wire_bytes) < LEAST_RAMP_READINGS:
        columns = np.stack([np.ones_like(wire_bytes), wire_bytes], axis=1)
        latency_s, s_per_byte = fit_line(columns, seconds)
        line = np.array([latency_s, 0.0, 1.0, 1.0 / max(s_per_byte, 1e-18)])
        return line, Fit.of(columns @ np.array([latency_s, s_per_byte]), seconds)

    def loss(point: Vector) -> float:
        if point.min() < 0 or point[3] <= 0 or point[2] > LARGEST_RAMP_MB:
            return 1e9
        return float(np.mean(np.abs(np.log(_collective_s(wire_bytes, point) / seconds))))

    start = np.array([seconds.min() * 1e6, 20.0, 2.0, wire_bytes[-1] / seconds[-1] / 1e9])
    best = nelder_mead(loss, start)
    return best * np.array([1e-6, 1e-6, 1e6, 1e9]), Fit.of(_collective_s(wire_bytes, best), seconds)


def _collective_s(wire_bytes: Vector, point: Vector) -> Vector:
    """The formula of ``CollectiveCurve``, of µs, µs, MB and GB/s."""
    latency, ramp, half, rate = point
    seconds: Vector = 1e-6 * (latency + ramp * wire_bytes / (wire_bytes + half * 1e6)) + wire_bytes / (
        rate * 1e9
    )
    return seconds
