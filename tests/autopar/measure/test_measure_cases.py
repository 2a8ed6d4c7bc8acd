"""Every case runs, and the work it claims is that of the shapes it runs on."""

from __future__ import annotations

import pytest
import torch

from autopar.measure.attention import attention_cases
from autopar.measure.cases import Case
from autopar.measure.losses import end_cases
from autopar.measure.matmul import linear_cases
from autopar.measure.memory_bound import memory_cases
from autopar.measure.optimizer import optimizer_cases
from cost_models.dtypes import dtype_bytes
from cost_models.operators import FAMILIES

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
"""Cases allocate nothing before they are prepared: those of a GPU can be listed without one."""


def all_cases(device: torch.device) -> list[Case]:
    return [
        *linear_cases(device, "bfloat16", is_quick=False),
        *linear_cases(device, "float32", is_quick=False),
        *attention_cases(device, "bfloat16", is_quick=False),
        *memory_cases(device, is_quick=False),
        *end_cases(device, is_quick=False),
        *optimizer_cases(device, is_quick=False),
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(lambda: linear_cases(CPU, "float32", is_quick=True)[:9], id="linear"),
        pytest.param(lambda: attention_cases(CPU, "float32", is_quick=True)[:2], id="attention"),
        pytest.param(lambda: memory_cases(CPU, is_quick=False)[:20], id="memory"),
        pytest.param(lambda: end_cases(CPU, is_quick=True), id="ends"),
        pytest.param(lambda: optimizer_cases(CPU, is_quick=True), id="optimizer"),
    ],
)
def test_every_case_runs_twice(cases) -> None:
    for case in cases():
        for what in case.prepare() * 2:
            what.run()
            assert what.work.family in FAMILIES
            assert what.repeats >= 1


def test_the_three_products_of_a_layer_have_its_flops_and_its_bytes() -> None:
    cases = linear_cases(CPU, "float32", is_quick=True)
    for index in range(0, len(cases), 3):
        works = [case.prepare()[0].work for case in cases[index : index + 3]]
        assert len({work.flops for work in works}) == 1
        assert len({work.moved_bytes for work in works}) == 1
        for work in works:
            elements = work.m * work.k + work.k * work.n + work.m * work.n
            assert work.moved_bytes == elements * dtype_bytes("float32")


def test_a_product_s_operands_have_the_shape_it_claims() -> None:
    for case in linear_cases(CPU, "float32", is_quick=True)[-3:]:
        (what,) = case.prepare()
        with torch.profiler.profile(record_shapes=True) as profile:
            what.run()
        shapes = [event.input_shapes for event in profile.events() if event.name == "aten::mm"]
        assert shapes[0][:2] == [[what.work.m, what.work.k], [what.work.k, what.work.n]]


def test_the_grid_of_a_gpu_is_large_and_fits_into_its_memory() -> None:
    cases = all_cases(GPU)
    assert len(cases) > 500
    assert max(case.held_bytes for case in cases) < 10e9


def test_the_quick_grid_is_a_part_of_the_whole() -> None:
    whole = {case.name for case in linear_cases(GPU, "bfloat16", is_quick=False)}
    quick = {case.name for case in linear_cases(GPU, "bfloat16", is_quick=True)}
    assert quick < whole
    assert len(quick) < 0.5 * len(whole)
