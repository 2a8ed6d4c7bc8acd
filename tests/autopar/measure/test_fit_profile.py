"""A profile fitted to readings prices what was read as it was read, and says what it was fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopar.measure.fit import EMPTY_KERNEL, fit_profile
from autopar.measure.readings import DeviceFacts, HostReading, OperatorReading, Readings, Skipped
from cost_models.operators import Work, operator_s
from cost_models.profile_text import format_profile
from cost_models.profiles import Profile, builtin_profile, read_profile
from tests.autopar.measure.synthetic import product, readings_of, works


@pytest.fixture(scope="module")
def readings() -> Readings:
    return readings_of(builtin_profile("h100"))


@pytest.fixture(scope="module")
def fitted(readings: Readings) -> Profile:
    return fit_profile(readings, builtin_profile("h200"), name="synthetic")


def test_the_fitted_profile_prices_every_family_as_the_true_one_does(fitted: Profile) -> None:
    truth = builtin_profile("h100").device
    for work in works():
        price, true_s = operator_s(work, fitted.device), operator_s(work, truth).seconds
        tolerance = 0.25 if work.family == "matmul" else 0.03
        assert price.seconds == pytest.approx(true_s, rel=tolerance), work
        assert price.provenance == "fitted"


def test_collectives_are_those_of_the_true_links(fitted: Profile) -> None:
    truth = builtin_profile("h100").intra
    for name, curve in truth.collectives.items():
        for ranks in curve.ranks:
            for wire in (2e3, 1e6, 1e9):
                found = fitted.intra.collectives[name].seconds(wire, ranks)
                assert found == pytest.approx(curve.seconds(wire, ranks), rel=0.2), (name, ranks, wire)


def test_every_measured_figure_says_when_on_what_and_how_well(readings: Readings, fitted: Profile) -> None:
    base = builtin_profile("h200").device
    curves = {**fitted.device.matmul, **fitted.device.families}
    kept = {**base.matmul, **base.families}
    read = {work.family for work in works()} & curves.keys() | {"bfloat16"}
    assert {name for name, curve in curves.items() if curve != kept.get(name)} == read
    for curve in (curves[name] for name in read):
        assert curve.source.startswith("measured 2026-11-23 Synthetic GPU torch 2.11.0")
        assert "median |error|" in curve.source
    assert fitted.device.sources["memory_bytes"] == readings.facts.source


def test_what_was_not_measured_keeps_the_base_profile_s_source(fitted: Profile) -> None:
    base = builtin_profile("h200")
    assert fitted.device.matmul["float32"] == base.device.matmul["float32"]
    assert fitted.device.sources["overlap_slowdown"] == base.device.sources["overlap_slowdown"]
    assert fitted.inter == base.inter


def test_the_fitted_profile_is_a_file_that_reads(fitted: Profile, tmp_path: Path) -> None:
    file = tmp_path / "synthetic.toml"
    file.write_text(format_profile(fitted), encoding="utf-8")
    assert read_profile(file).device.name == "synthetic"


def test_an_unknown_device_gets_the_best_rates_that_were_measured(readings: Readings) -> None:
    device = fit_profile(readings).device
    best = max(
        reading.work.flops / reading.seconds
        for reading in readings.operators
        if reading.work.family == "matmul"
    )
    assert device.name == "synthetic-gpu"
    assert device.peak("bfloat16") == pytest.approx(best)
    assert "best product" in device.sources["peak_flops_per_s.bfloat16"]


def test_host_times_become_a_cost_per_call_and_per_kernel() -> None:
    def chain(name: str, kernels: int) -> HostReading:
        seconds = 1e-4 + kernels * 5e-6
        return HostReading(name, kernels, seconds, seconds, seconds)

    host = (
        HostReading("eager chain", 80, 80 * 2e-5, 80 * 1e-5, 80 * 4e-5),
        *(chain(f"compiled chain {way}", kernels) for way in ("forward", "backward") for kernels in (8, 48)),
    )
    tiny = OperatorReading(EMPTY_KERNEL, Work("free", 0.0, 32.0, 32.0, "float32"), 2e-6, 0.0, 30)
    device = fit_profile(Readings(facts(), (tiny,), host, (), ())).device
    assert device.host_dispatch_s == pytest.approx(2e-5)
    assert "1e-05 to 4e-05" in device.sources["host_dispatch_s"]
    assert (device.compiled_call_s, device.compiled_kernel_s) == pytest.approx((1e-4, 5e-6))
    assert device.kernel_launch_s == pytest.approx(2e-6)


def test_readings_round_trip_through_their_file(readings: Readings, tmp_path: Path) -> None:
    whole = Readings(
        facts(),
        readings.operators[:3],
        (HostReading("eager chain", 80, 1e-3, 1e-3, 2e-3),),
        readings.links[:2],
        (Skipped("attention", "OutOfMemoryError: …"),),
        12.5,
    )
    whole.write(tmp_path / "readings.json")
    assert Readings.read(tmp_path / "readings.json") == whole


def test_products_of_two_dtypes_are_fitted_apart() -> None:
    truth = builtin_profile("h100").device
    operators = tuple(
        OperatorReading("linear", work, operator_s(work, truth).seconds, 0.0, 1)
        for dtype in ("bfloat16", "float32")
        for work in (product(m, n, 1024, dtype) for m in (512, 1024, 2048, 4096) for n in (512, 1024, 4096))
    )
    device = fit_profile(Readings(facts(), operators, (), (), ()), builtin_profile("h100")).device
    big = [operator_s(product(4096, 4096, 1024, dtype), device).seconds for dtype in ("bfloat16", "float32")]
    assert big[1] > 5 * big[0]


def facts() -> DeviceFacts:
    return DeviceFacts("Synthetic GPU", "cuda", "2.11.0", "2026-11-23", 132, 80 * 10**9, 0)
