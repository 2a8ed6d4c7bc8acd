"""A fit finds the curve that made its readings, and says how far off it is where there is noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.curves import AttentionTiles, MatmulCurve, PackedProducts
from cost_models.fitting import (
    GPU_TILES,
    Fit,
    FusedCalls,
    Products,
    fit_attention,
    fit_attention_rates,
    fit_attention_tiles,
    fit_collective,
    fit_line,
    fit_matmul,
    fit_memory,
    fit_packed,
    matmul_s,
    rising,
)
from cost_models.profiles import builtin_profile

SIDES = (256, 512, 1024, 2048, 4096, 8192)


def products_of(curve: MatmulCurve) -> Products:
    """Readings that lie on ``curve``."""
    grid = np.array([(m, n, k) for m in SIDES for n in SIDES for k in SIDES], dtype=float)
    seconds = [curve.burst_s(int(m), int(n), int(k)) for m, n, k in grid]
    return Products(grid[:, 0], grid[:, 1], grid[:, 2], np.array(seconds), np.ones(len(grid)))


def test_the_matmul_formula_on_arrays_is_that_of_the_curve() -> None:
    curve = builtin_profile("h100").device.matmul["bfloat16"]
    products = products_of(curve)
    np.testing.assert_allclose(matmul_s(products, curve), products.seconds, rtol=1e-12)


def test_products_that_lie_on_a_curve_are_described_within_2_percent() -> None:
    device = builtin_profile("h100").device
    products = products_of(device.matmul["bfloat16"])
    curve, fit = fit_matmul(
        products,
        units=132,
        tiles=GPU_TILES,
        peak_flops_per_s=device.peak("bfloat16"),
        memory_bytes_per_s=device.memory_bytes_per_s,
    )
    assert fit.median < 0.02
    assert curve.flops_per_s <= device.peak("bfloat16")
    assert curve.memory_bytes_per_s <= device.memory_bytes_per_s


def test_memory_bound_kernels_give_back_their_fixed_part_and_bandwidth() -> None:
    moved, kernels = np.array([1e5, 1e6, 1e7, 1e8, 1e9]), np.array([1.0, 1.0, 2.0, 1.0, 1.0])
    curve, fit = fit_memory(moved, kernels, kernels * 5e-6 + moved / 3e12)
    assert curve.fixed_s == pytest.approx(5e-6)
    assert curve.bytes_per_s == pytest.approx(3e12)
    assert fit.p90 < 1e-9


def test_a_term_that_would_be_negative_is_left_out() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])
    seconds = np.array([0.5, 1.5, 3.5])  # the line −0.5 + x
    constant, slope = fit_line(columns, seconds)
    assert constant == 0.0
    assert 0.5 < slope < 1.0


def test_attention_by_tiles_gives_back_its_numbers() -> None:
    true = AttentionTiles(
        (64, 128), (6e-6, 8e-6), (4.6e14, 6.5e14), (384.0, 256.0), (1e-10, 2e-10), (5e-9, 6e-9), 4.0, "test"
    )
    rows = [
        (4.0 * heads * share * seq * seq * width, seq, width, heads * seq)
        for heads in (8, 32, 384)
        for seq in (512, 2048, 8192)
        for width in (64, 128)
        for share in (0.5, 1.0)
    ]
    flops, seqs, widths, queries = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    seconds = np.array(
        [true.seconds(f, seq=int(s), head_dim=int(w), kernels=1, queries=q) for f, s, w, q in rows]
    )
    found = fit_attention_tiles(FusedCalls(flops, seqs, widths, seconds, queries), flops_per_pair=4.0)
    assert found is not None
    curve, fit = found
    assert fit.p90 < 1e-6
    assert curve.diagonal == true.diagonal
    assert curve.flops_per_s == pytest.approx(true.flops_per_s)
    assert curve.key_s == pytest.approx(true.key_s)


def test_attention_gives_back_its_rates_and_gain() -> None:
    true = builtin_profile("b200").device.attention["attention"]
    rows = [
        (4.0 * heads * 0.5 * seq * seq * width, seq, width)
        for heads in (8, 64, 256)
        for seq in (1024, 8192)
        for width in (64, 128)
    ]
    flops, seqs, widths = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    seconds = np.array([true.seconds(f, seq=int(s), head_dim=int(w), kernels=1) for f, s, w in rows])
    curve, fit = fit_attention(FusedCalls(flops, seqs, widths, seconds))
    assert fit.p90 < 1e-6
    assert curve.wide_gain == pytest.approx(true.wide_gain)
    assert curve.seq == true.seq
    assert curve.flops_per_s == pytest.approx(true.flops_per_s)


def test_collectives_give_back_latency_and_bandwidth() -> None:
    wire = np.array([2.0**power for power in range(10, 31, 2)])
    seconds = 8e-6 + 2e-5 * wire / (wire + 4e6) + wire / 3e11
    (latency_s, _, _, bytes_per_s), fit = fit_collective(wire, seconds)
    assert fit.p90 < 0.05
    assert latency_s == pytest.approx(8e-6, rel=0.1)
    assert bytes_per_s == pytest.approx(3e11, rel=0.1)


def test_few_sizes_of_a_collective_make_a_line() -> None:
    wire = np.array([1e3, 1e5, 1e7])
    (latency_s, ramp_s, _, bytes_per_s), _ = fit_collective(wire, 1e-4 + wire / 1e9)
    assert (latency_s, ramp_s, bytes_per_s) == pytest.approx((1e-4, 0.0, 1e9))


def test_packed_products_give_back_their_numbers() -> None:
    truth = PackedProducts(2e-5, 1e11, 8e9, "")
    sizes = [(m, n, k) for m in (64, 512, 2048) for n in (64, 1024) for k in (128, 512)]
    m, n, k = np.array(sizes, dtype=float).T
    seconds = np.array([truth.seconds(*size, element_bytes=4) for size in sizes])
    curve, fit = fit_packed(Products(m, n, k, seconds, np.ones_like(m), element_bytes=4.0))
    found = (curve.fixed_s, curve.flops_per_s, curve.bytes_per_s)
    assert found == pytest.approx((truth.fixed_s, truth.flops_per_s, truth.bytes_per_s), rel=1e-6)
    assert fit.p90 < 1e-6


def test_attention_of_a_cpu_runs_at_the_rates_that_were_measured() -> None:
    grid = [(seq, width) for seq in (128, 512) for width in (32, 64)]
    seq, width = np.array(grid, dtype=float).T
    flops, rates = 1e9 * np.ones(4), np.array([2e10, 3e10, 4e10, 6e10])
    curve, fit = fit_attention_rates(FusedCalls(flops, seq, width, flops / rates)) or (None, None)
    assert curve is not None
    assert fit is not None
    assert fit.p90 < 1e-9
    assert curve.seconds(1e9, seq=256, head_dim=64, kernels=1) == pytest.approx(1e9 / 4.5e10)
    assert fit_attention_rates(FusedCalls(flops[:3], seq[:3], width[:3], (flops / rates)[:3])) is None


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_a_rising_sequence_never_falls_and_stays_as_it_is_where_it_rises(values: list[float]) -> None:
    found = rising(values)
    assert all(first <= second * (1 + 1e-12) for first, second in itertools.pairwise(found))
    assert rising(sorted(values)) == pytest.approx(sorted(values))


def test_errors_are_relative() -> None:
    fit = Fit.of(np.array([1.1, 90.0, 1e-6]), np.array([1.0, 100.0, 1e-6]))
    assert fit.median == pytest.approx(0.1)
    assert str(fit) == "3 readings, median |error| 10.0%, 90th percentile 10.0%"
