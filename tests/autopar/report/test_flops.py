"""FLOPs that run are the model's, and those of full recomputation once more."""

from __future__ import annotations

import msgspec
import pytest

from autopar.plan.schema import Plan
from autopar.report.flops import hardware_flops
from tests.autopar.cli.command import small_plan

LAYERS, HIDDEN, VOCAB, BATCH, SEQ = 3, 16, 32, 4, 8
SOURCE = f"gpt:layers={LAYERS},hidden={HIDDEN},heads=2,vocab={VOCAB}"


def plan_with(recompute: str, pins: str = "") -> Plan:
    plan = small_plan(SOURCE, "cpu:1", pins, batch=BATCH)
    stages = [msgspec.structs.replace(stage, recompute=recompute) for stage in plan.stages]
    return msgspec.structs.replace(plan, stages=stages)


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_nothing_that_counts_is_run_again(recompute: str) -> None:
    plan = plan_with(recompute)
    assert hardware_flops(plan) == plan.model.flops


@pytest.mark.parametrize("pins", ["", "microbatch=1"])
def test_full_recomputation_runs_the_forward_of_every_block_again(pins: str) -> None:
    """12·d² weights of products in a block, and causal attention over the sequence."""
    products = 2 * 12 * HIDDEN**2 * BATCH * SEQ
    attention = 2 * 2 * BATCH * SEQ**2 * HIDDEN / 2
    plan = plan_with("full", pins)
    assert hardware_flops(plan) - plan.model.flops == pytest.approx(LAYERS * (products + attention))


def test_a_models_flops_are_six_for_each_weight_and_token_and_its_attention() -> None:
    weights = LAYERS * 12 * HIDDEN**2 + HIDDEN * VOCAB
    attention = LAYERS * 2 * 2 * BATCH * SEQ**2 * HIDDEN / 2
    flops = small_plan(SOURCE, "cpu:1", "", batch=BATCH).model.flops
    assert flops == pytest.approx(6 * weights * BATCH * SEQ + 3.5 * attention)
