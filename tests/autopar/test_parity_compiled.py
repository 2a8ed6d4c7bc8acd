"""Compiled programs, and those that compute in bfloat16, train alike too: Inductor on CPU, two processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autopar.plan.files import format_plan
from tests.autopar.parity import Case, Errors, case_plan, measure, worst
from tests.gloo_pool import GlooPool

COMPILE_TIMEOUT_S = 500.0

COMPILED = (
    Case("gpt-4", "cpu:2", "dp_shard=2,zero=2,microbatch=2,recompute=full", compile=True, uneven=True),
    Case("llama-4", "cpu:2", "tp=2,microbatch=4,recompute=selective", compile=True),
    Case("gpt-4", "cpu:2", "pp=2,schedule=1f1b,microbatch=2,recompute=selective", compile=True),
    Case("hf-t5", "cpu:2", "pp=2,schedule=interleaved,chunks=2,microbatch=4", compile=True),
)
BFLOAT16 = (
    Case(
        "gpt-4", "cpu:2", "dp_shard=2,zero=2,microbatch=2,recompute=selective", precision="bf16", uneven=True
    ),
    Case("llama-4", "cpu:2", "pp=2,schedule=1f1b,microbatch=2,recompute=full", precision="bf16", uneven=True),
    Case("hf-t5", "cpu:2", "pp=2,schedule=interleaved,chunks=2,microbatch=2", precision="bf16"),
    Case("hf-gpt2", "cpu:2", "tp=2,microbatch=2", precision="bf16"),
)


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    with GlooPool(2) as pool:
        yield pool


def _errors(case: Case, pool: GlooPool) -> Errors:
    return worst(pool.run(measure, case, format_plan(case_plan(case)), timeout_s=COMPILE_TIMEOUT_S))


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_programs_train_alike(case: Case, pool: GlooPool) -> None:
    errors = _errors(case, pool)
    assert errors.loss <= 1e-5, errors
    assert errors.gradient <= 1e-5, errors
    assert errors.parameter <= 1e-4, errors


@pytest.mark.slow
@pytest.mark.parametrize("case", BFLOAT16, ids=str)
def test_bfloat16_is_as_far_from_float32_as_its_rounding(case: Case, pool: GlooPool) -> None:
    """Products round to 8 bits, 4e-3; AdamW turns a gradient's error into at most a step of its own size."""
    errors = _errors(case, pool)
    assert errors.loss <= 5e-3, errors
    assert errors.gradient <= 5e-2, errors
