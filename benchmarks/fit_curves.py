"""Fits the curves of a device profile to published measurements and prints them as TOML.

    python benchmarks/fit_curves.py matmul GEMM.csv a100_sxm --units 108 --peak 312e12 --bandwidth 2.039e12
    python benchmarks/fit_curves.py collectives NCCL.csv A100-SXM4-80GB

``GEMM.csv`` has the columns gpu, m, n, k, latency_ms; ``NCCL.csv`` gpu, n_gpus, nodes, collective,
size_bytes, time_us. Each fit prints, as a comment, how well it describes the rows it was fitted on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
TILES = ((256, 128), (128, 64), (64, 64))
WIRE_FACTOR = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}


def nelder_mead(loss: Callable[[Vector], float], start: Vector, *, iterations: int = 800) -> Vector:
    """The best point found by the simplex method of Nelder and Mead (1965) from ``start``."""
    simplex = [start, *(start + 0.2 * start[i] * np.eye(len(start))[i] for i in range(len(start)))]
    values = [loss(point) for point in simplex]
    for _ in range(iterations):
        order = np.argsort(values)
        simplex, values = [simplex[i] for i in order], [values[i] for i in order]
        _improve(loss, simplex, values)
    return simplex[int(np.argmin(values))]


def _improve(loss: Callable[[Vector], float], simplex: list[Vector], values: list[float]) -> None:
    """One step on a sorted simplex: reflect, expand, contract or shrink."""
    centre = np.mean(simplex[:-1], axis=0)
    away = centre - simplex[-1]
    candidates = [centre + away]
    if loss(candidates[0]) < values[0]:
        candidates.append(centre + 2.0 * away)
    elif loss(candidates[0]) >= values[-2]:
        candidates.append(centre - 0.5 * away)
    best = min(candidates, key=loss)
    if loss(best) < values[-1]:
        simplex[-1], values[-1] = best, loss(best)
        return
    for i in range(1, len(simplex)):
        simplex[i] = simplex[0] + 0.5 * (simplex[i] - simplex[0])
        values[i] = loss(simplex[i])


@dataclass(frozen=True, slots=True)
class Products:
    """Measured matrix products: columns m, n, k (elements) and seconds."""

    m: Vector
    n: Vector
    k: Vector
    seconds: Vector

    @property
    def flops(self) -> Vector:
        return 2.0 * self.m * self.n * self.k


def read_products(path: Path, gpu: str) -> Products:
    """Products of ``gpu`` whose dims are at least 64: those of training."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == gpu]
    table = np.array([[float(row[name]) for name in ("m", "n", "k", "latency_ms")] for row in rows])
    table = table[np.min(table[:, :3], axis=1) >= 64]
    return Products(table[:, 0], table[:, 1], table[:, 2], table[:, 3] * 1e-3)


def matmul_s(products: Products, point: Vector, units: int, peak: float, bandwidth: float) -> Vector:
    """The formula of ``cost_models.curves.MatmulCurve``, on arrays."""
    fixed, rate, overhead, split, memory, *efficiency = point
    waves_s = np.full_like(products.m, np.inf)
    for tile, share in zip(TILES, (1.0, *efficiency), strict=True):
        for rows, columns in (tile, tile[::-1]):
            tiles = np.ceil(products.m / rows) * np.ceil(products.n / columns)
            waves = split * np.maximum(tiles / units, 1.0) + (1.0 - split) * np.ceil(tiles / units)
            tile_flops = 2.0 * rows * columns * (products.k + overhead)
            waves_s = np.minimum(waves_s, waves * tile_flops * units / (rate * peak * share))
    elements = products.m * products.k + products.k * products.n + products.m * products.n
    memory_s = 2.0 * elements / (memory * bandwidth)
    return fixed * 1e-6 + (waves_s**4 + memory_s**4) ** 0.25


def fit_matmul(products: Products, units: int, peak: float, bandwidth: float) -> Vector:
    """fixed (µs), rate/peak, k overhead, wave split, memory/bandwidth, tile efficiencies."""

    def loss(point: Vector) -> float:
        if point.min() < 0 or point[3] > 1 or point[5:].min() < 0.2 or point[5:].max() > 1.1:
            return 1e9
        error = np.abs(np.log(matmul_s(products, point, units, peak, bandwidth) / products.seconds))
        return float(np.mean(np.minimum(error, 0.5)) + 0.3 * np.percentile(error, 90))

    return nelder_mead(loss, np.array([3.0, 0.85, 100.0, 0.5, 0.7, 0.9, 0.7]))


def print_matmul(products: Products, gpu: str, units: int, peak: float, bandwidth: float) -> None:
    point = fit_matmul(products, units, peak, bandwidth)
    error = matmul_s(products, point, units, peak, bandwidth) / products.seconds - 1.0
    print(f"# {len(products.m)} products of {gpu}: median |error| {np.median(np.abs(error)):.1%}, "
          f"90th percentile {np.percentile(np.abs(error), 90):.1%}")  # fmt: skip
    for low in range(8, 15):
        inside = (products.flops >= 10**low) & (products.flops < 10 ** (low + 1))
        if inside.any():
            print(f"#   1e{low} FLOPs: median error {np.median(error[inside]):+.1%}")
    print(f"fixed_s = {point[0] * 1e-6:.3g}")
    print(f"flops_per_s = {point[1] * peak:.4g}")
    print(f"units = {units}")
    print(f"tiles = {[list(tile) for tile in TILES]}")
    print(f"tile_efficiency = {[1.0, *(round(float(share), 3) for share in point[5:])]}")
    print(f"k_overhead = {point[2]:.1f}")
    print(f"wave_split = {point[3]:.3f}")
    print(f"memory_bytes_per_s = {point[4] * bandwidth:.4g}")


def fit_collective(wire_bytes: Vector, seconds: Vector) -> Vector:
    """latency (µs), ramp (µs), ramp bytes (MB), bandwidth (GB/s) of a ``CollectiveCurve``."""

    def loss(point: Vector) -> float:
        return (
            1e9
            if point.min() < 0
            else float(np.mean(np.abs(np.log(collective_s(wire_bytes, point) / seconds))))
        )

    start = np.array([seconds.min() * 1e6, 20.0, 2.0, wire_bytes[-1] / seconds[-1] / 1e9])
    return nelder_mead(loss, start)


def collective_s(wire_bytes: Vector, point: Vector) -> Vector:
    """The formula of ``cost_models.curves.CollectiveCurve``, on arrays."""
    latency, ramp, half, rate = point
    return 1e-6 * (latency + ramp * wire_bytes / (wire_bytes + half * 1e6)) + wire_bytes / (rate * 1e9)


def print_collectives(path: Path, gpu: str) -> None:
    with path.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["gpu"] == gpu and row["time_us"] and row["nodes"] == "1"
        ]
    for collective, factor in WIRE_FACTOR.items():
        chosen = [row for row in rows if row["collective"].replace("alltoall", "all_to_all") == collective]
        points, errors = [], []
        for ranks in sorted({int(row["n_gpus"]) for row in chosen}):
            group = sorted(
                (row for row in chosen if int(row["n_gpus"]) == ranks), key=lambda row: int(row["size_bytes"])
            )
            sizes = np.array([float(row["size_bytes"]) for row in group])
            seconds = np.array([float(row["time_us"]) * 1e-6 for row in group])
            wire = factor * sizes * (ranks - 1) / ranks
            point = fit_collective(wire, seconds)
            points.append((ranks, *point))
            errors.append(np.median(np.abs(collective_s(wire, point) / seconds - 1.0)))
        _print_collective(collective, points, errors)


def _print_collective(collective: str, points: list[tuple[float, ...]], errors: list[float]) -> None:
    if not points:
        return
    ranks, latency, ramp, half, rate = zip(*points, strict=True)
    print(f"\n[intra.collectives.{collective}]  # median |error| {max(errors):.1%} at worst over ranks")
    print(f"ranks = {list(ranks)}")
    print(f"latency_s = [{', '.join(f'{value * 1e-6:.3g}' for value in latency)}]")
    print(f"ramp_s = [{', '.join(f'{value * 1e-6:.3g}' for value in ramp)}]")
    print(f"ramp_bytes = [{', '.join(f'{value * 1e6:.3g}' for value in half)}]")
    print(f"bytes_per_s = [{', '.join(f'{value * 1e9:.4g}' for value in rate)}]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("matmul", "collectives"))
    parser.add_argument("csv", type=Path)
    parser.add_argument("gpu")
    parser.add_argument("--units", type=int, help="multiprocessors")
    parser.add_argument("--peak", type=float, help="datasheet FLOP/s")
    parser.add_argument("--bandwidth", type=float, help="datasheet bytes/s")
    options = parser.parse_args()
    if options.what == "collectives":
        print_collectives(options.csv, options.gpu)
    else:
        products = read_products(options.csv, options.gpu)
        print_matmul(products, options.gpu, options.units, options.peak, options.bandwidth)


if __name__ == "__main__":
    main()
