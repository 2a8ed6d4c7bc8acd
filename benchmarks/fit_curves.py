"""Fits the curves of a device profile to published measurements and prints them as TOML.

    python benchmarks/fit_curves.py matmul GEMM.csv a100_sxm --units 108 --peak 312e12 --bandwidth 2.039e12
    python benchmarks/fit_curves.py collectives NCCL.csv A100-SXM4-80GB

``GEMM.csv`` has the columns gpu, m, n, k, latency_ms; ``NCCL.csv`` gpu, n_gpus, nodes, collective,
size_bytes, time_us. Each fit prints, as a comment, how well it describes the rows it was fitted on.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from cost_models.curves import CollectiveCurve
from cost_models.fitting import GPU_TILES, Products, fit_collective, fit_matmul, matmul_s
from cost_models.profile_text import format_curve

WIRE_FACTOR = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}


def read_products(path: Path, gpu: str) -> Products:
    """Products of ``gpu`` whose dims are at least 64: those of training."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == gpu]
    table = np.array([[float(row[name]) for name in ("m", "n", "k", "latency_ms")] for row in rows])
    table = table[np.min(table[:, :3], axis=1) >= 64]
    return Products(table[:, 0], table[:, 1], table[:, 2], table[:, 3] * 1e-3, np.ones(len(table)))


def print_matmul(products: Products, gpu: str, units: int, peak: float, bandwidth: float) -> None:
    curve, fit = fit_matmul(
        products, units=units, tiles=GPU_TILES, peak_flops_per_s=peak, memory_bytes_per_s=bandwidth
    )
    error = matmul_s(products, curve) / products.seconds - 1.0
    for low in range(8, 15):
        inside = (products.flops >= 10**low) & (products.flops < 10 ** (low + 1))
        if inside.any():
            print(f"#   1e{low} FLOPs: median error {np.median(error[inside]):+.1%}")
    print(format_curve("matmul.bfloat16", replace(curve, source=f"{gpu}: {fit}")))


def print_collectives(path: Path, gpu: str) -> None:
    with path.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["gpu"] == gpu and row["time_us"] and row["nodes"] == "1"
        ]
    for collective, factor in WIRE_FACTOR.items():
        chosen = [row for row in rows if row["collective"].replace("alltoall", "all_to_all") == collective]
        rows_of_fit, errors = [], []
        for ranks in sorted({int(row["n_gpus"]) for row in chosen}):
            group = sorted(
                (row for row in chosen if int(row["n_gpus"]) == ranks), key=lambda row: int(row["size_bytes"])
            )
            sizes = np.array([float(row["size_bytes"]) for row in group])
            seconds = np.array([float(row["time_us"]) * 1e-6 for row in group])
            point, fit = fit_collective(factor * sizes * (ranks - 1) / ranks, seconds)
            rows_of_fit.append((ranks, *(float(value) for value in point)))
            errors.append(fit.median)
        if chosen:
            source = f"{gpu}: median |error| {max(errors):.1%} at worst over ranks"
            curve = CollectiveCurve(*zip(*rows_of_fit, strict=True), source=source)
            print(format_curve(f"intra.collectives.{collective}", curve))


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
