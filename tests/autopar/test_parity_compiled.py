"""Compiled programs, and those that compute in bfloat16, train alike too: Inductor on CPU, two processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from autopar.plan.files import format_plan
from tests.autopar.parity import Case, Errors, case_plan, measure, worst
from tests.gloo_pool import GlooPool

COMPILE_TIMEOUT_S = 500.0
BFLOAT16_SLACK = 1.5
"""How much larger the worst error may be than on one device, where sums run in another order."""
BFLOAT16_LOSS = 4e-4
"""A tenth of the rounding of bfloat16: losses of the models are averages of many rounded logits."""

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
def test_bfloat16_is_no_further_from_float32_than_on_one_device(case: Case, pool: GlooPool) -> None:
    """Products round to 8 bits, 4e-3, whose way through a model is the model's own: up to 9e-2 in T5's norms."""
    errors = _errors(case, pool)
    alone = replace(case, cluster="cpu:1", pins="")
    reference = measure(alone, format_plan(case_plan(alone)))
    assert errors.loss <= max(BFLOAT16_SLACK * reference.loss, BFLOAT16_LOSS), errors
    assert errors.gradient <= BFLOAT16_SLACK * reference.gradient, (errors, reference)
    assert errors.parameter <= BFLOAT16_SLACK * reference.parameter, (errors, reference)
