"""Operators cost more when they do more, never less than physics, and what was measured."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.operators import FAMILIES, FRESH_FROM_BYTES, Work, operator_s, roofline_s
from cost_models.profiles import builtin_profile, profile_names


def product(m: int, n: int, k: int, dtype: str = "bfloat16", batch: int = 1) -> Work:
    moved = 2.0 * batch
    return Work(
        "matmul",
        2.0 * batch * m * n * k,
        moved * (m * k + k * n),
        moved * m * n,
        dtype,
        m=m,
        n=n,
        k=k,
        batch=batch,
    )


def rate(name: str, work: Work) -> float:
    return work.flops / operator_s(work, builtin_profile(name).device).seconds


@settings(derandomize=True, max_examples=100)
@given(
    m=st.sampled_from([1, 64, 200, 1024, 5000]),
    n=st.sampled_from([64, 1000, 4096]),
    k=st.sampled_from([64, 512, 8192]),
    name=st.sampled_from(["h100", "a100", "b200", "cpu"]),
    grown=st.sampled_from(["m", "n", "k"]),
)
def test_a_product_twice_as_large_never_takes_less_time(
    m: int, n: int, k: int, name: str, grown: str
) -> None:
    device = builtin_profile(name).device
    sizes = {"m": m, "n": n, "k": k}
    larger = sizes | {grown: 2 * sizes[grown]}
    assert operator_s(product(**sizes), device).seconds <= operator_s(product(**larger), device).seconds


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("matmul", "free")])
def test_more_bytes_and_flops_never_take_less_time(name: str, family: str) -> None:
    device = builtin_profile(name).device
    works = [
        Work(family, 10.0 * size, 2.0 * size, 2.0 * size, "float32") for size in (0, 1e3, 1e6, 1e9, 1e12)
    ]
    seconds = [operator_s(work, device).seconds for work in works]
    assert all(small <= large for small, large in itertools.pairwise(seconds))


@pytest.mark.parametrize("name", profile_names())
def test_no_product_beats_the_roofline(name: str) -> None:
    device = builtin_profile(name).device
    for dtype in device.peak_flops_per_s:
        work = product(8192, 8192, 8192, dtype)
        assert operator_s(work, device).seconds >= roofline_s(work, device)


@pytest.mark.parametrize(
    ("side", "burst_flops_per_s"), [(1024, 104e12), (2048, 672e12), (4096, 779e12), (8192, 795e12)]
)
def test_h200_bursts_match_an_independent_measurement(side: int, burst_flops_per_s: float) -> None:
    """1024³ was host-bound when measured; the device alone is faster."""
    curve = builtin_profile("h200").device.matmul["bfloat16"]
    predicted = 2 * side**3 / curve.burst_s(side, side, side)
    assert predicted >= 0.85 * burst_flops_per_s
    assert side == 1024 or predicted <= 1.15 * burst_flops_per_s


def test_products_in_a_step_run_below_their_burst() -> None:
    curve = builtin_profile("h100-tables").device.matmul["bfloat16"]
    assert curve.seconds(8192, 8192, 8192) == pytest.approx(1.15 * curve.burst_s(8192, 8192, 8192))
    assert curve.seconds(1024, 1024, 1024) == pytest.approx(1.31 * curve.burst_s(1024, 1024, 1024))


def test_float16_and_bfloat16_share_tensor_cores() -> None:
    assert rate("h100", product(4096, 4096, 4096, "float16")) == rate("h100", product(4096, 4096, 4096))


def test_v100_has_no_bfloat16() -> None:
    assert rate("v100", product(4096, 4096, 4096)) < 16e12
    assert rate("v100", product(4096, 4096, 4096, "float16")) > 60e12


def test_provenance_names_how_a_price_is_known() -> None:
    h100 = builtin_profile("h100").device
    assert operator_s(product(512, 512, 512), h100).provenance == "fitted"
    assert operator_s(product(512, 512, 512, "float64"), h100).provenance == "roofline"
    assert operator_s(Work("elementwise", 0, 1e6, 1e6, "float32"), h100).provenance == "fitted"


def test_views_are_free() -> None:
    h100 = builtin_profile("h100").device
    view = Work("free", 0, 0, 0, "float32")
    assert operator_s(view, h100).seconds == 0.0


def test_unknown_shapes_are_priced_as_a_cube_of_equal_flops() -> None:
    h100 = builtin_profile("h100").device
    unknown = Work("matmul", 2.0 * 1024**3, 0, 0, "bfloat16")
    assert operator_s(unknown, h100).seconds == operator_s(product(1024, 1024, 1024), h100).seconds


def test_wider_heads_run_nearer_to_the_peak() -> None:
    h100 = builtin_profile("h100").device
    seconds = [
        operator_s(Work("attention", 1e12, 0, 0, "bfloat16", seq=4096, head_dim=dim), h100).seconds
        for dim in (32, 64, 128, 256)
    ]
    assert seconds[0] > seconds[1] > seconds[2] >= seconds[3]


def test_negative_or_unknown_work_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="unknown family 'conv'"):
        Work("conv", 0, 0, 0, "float32")
    with pytest.raises(ValueError, match="negative"):
        Work("copy", 0, -1, 0, "float32")


def test_a_cpu_issues_itself_what_no_curve_describes() -> None:
    cpu = replace(builtin_profile("cpu").device, families={})
    work = Work("elementwise", 0, 0, 0, "float32", kernels=3)
    seconds = operator_s(work, cpu).seconds
    assert seconds == pytest.approx(3 * (cpu.kernel_launch_s + cpu.host_dispatch_s))


def test_a_large_new_tensor_of_a_cpu_costs_its_pages() -> None:
    free = replace(builtin_profile("cpu").device, fresh_bytes_per_s=0.0)
    paid = replace(free, fresh_bytes_per_s=2e9)

    def pages_s(work: Work) -> float:
        return operator_s(work, paid).seconds - operator_s(work, free).seconds

    assert pages_s(Work("copy", 0, 1e9, FRESH_FROM_BYTES, "float32")) == pytest.approx(FRESH_FROM_BYTES / 2e9)
    assert pages_s(Work("copy", 0, 1e9, FRESH_FROM_BYTES - 1, "float32")) == 0.0
    assert pages_s(Work("optimizer", 0, 1e9, 1e9, "float32")) == 0.0
    assert pages_s(product(4096, 4096, 64, "float32")) == pytest.approx(4 * 4096**2 / 2e9)


def test_an_operator_s_own_family_falls_back_to_its_usual_one() -> None:
    h100 = builtin_profile("h100").device
    for family, usual in (
        ("rms_norm", "norm"),
        ("rms_norm_backward", "norm_backward"),
        ("gelu", "activation"),
    ):
        works = [Work(name, 0, 1e8, 1e8, "bfloat16") for name in (family, usual)]
        assert operator_s(works[0], h100) == operator_s(works[1], h100)
