"""Bytes per parameter, the allocator's rounding, and the peak of a step by category."""

from __future__ import annotations

import pytest

from cost_models.cluster import parse_cluster
from cost_models.memory import allocated_bytes, at_rest, overhead_bytes, usable_bytes
from cost_models.step_memory import block_saved_bytes, head_bytes, step_memory
from cost_models.training_step import Configuration
from cost_models.transformer import BlockShape, TransformerShape
from cost_models.units import MiB

GPT = TransformerShape(layers=4, hidden=256, ffn=1024, heads=4, kv_heads=4, vocab=512)
LLAMA = TransformerShape(
    8, 1024, 2816, 16, 4, 32000, has_gated_mlp=True, has_rotary=True, has_tied_head=False
)
H100 = parse_cluster("h100:8").device


def test_adamw_takes_sixteen_bytes_a_parameter() -> None:
    assert at_rest("fp32", "adamw").at_rest == 16
    assert at_rest("fp32", "adamw").working == 0
    assert (at_rest("bf16", "adamw").at_rest, at_rest("bf16", "adamw").working) == (16, 2)
    assert at_rest("bf16", "sgd").at_rest == 8


@pytest.mark.parametrize(("precision", "optimizer"), [("fp12", "adamw"), ("fp32", "adagrad")])
def test_unknown_precisions_and_optimizers_are_named(precision: str, optimizer: str) -> None:
    with pytest.raises(ValueError, match=r"fp12|adagrad"):
        at_rest(precision, optimizer)


@pytest.mark.parametrize(
    ("tensor_bytes", "allocated"),
    [
        (0, 0),
        (1, 512),
        (513, 1024),
        (10 * MiB, 10 * MiB),
        (11 * MiB, 12 * MiB),
        (10 * MiB + 1, 10 * MiB + 512),
        (5 * MiB + 3, 5 * MiB + 512),
    ],
)
def test_the_cuda_allocator_rounds_up(tensor_bytes: int, allocated: int) -> None:
    assert allocated_bytes(tensor_bytes, H100) == allocated


def test_overheads_and_room_make_up_the_device() -> None:
    assert overhead_bytes(H100, 2) + usable_bytes(H100, 2) == H100.memory_bytes
    cpu = parse_cluster("cpu:2").device
    assert overhead_bytes(cpu, 3) == 0
    assert allocated_bytes(1, cpu) == 64


def test_a_gpt_block_saves_34_bytes_per_token_and_width() -> None:
    block = BlockShape(GPT, sequences=2, seq=128, dtype="bfloat16")
    tokens = 256
    expected = 34 * tokens * 256 + 4 * tokens * 4 + 16 * tokens + 2 * GPT.block_weights
    assert block_saved_bytes(block) == pytest.approx(expected)


def test_a_llama_block_saves_what_was_read_off_its_program() -> None:
    block = BlockShape(LLAMA, sequences=1, seq=512, dtype="bfloat16")
    tokens, width, kv = 512, 1024, 256
    expected = 14 * tokens * width + 4 * tokens * kv + 6 * tokens * 2816 + 4 * tokens * 16 + 8 * tokens
    assert block_saved_bytes(block) == pytest.approx(expected + 2 * LLAMA.block_weights)
    assert head_bytes(block) == 2 * tokens * width + 2 * tokens * 32000 + 4 * 32000 * width + 12 * tokens


@pytest.mark.parametrize("shape", [GPT, LLAMA], ids=["gpt", "llama"])
def test_recomputing_more_keeps_less(shape: TransformerShape) -> None:
    block = BlockShape(shape, sequences=1, seq=512, dtype="bfloat16")
    assert (
        block_saved_bytes(block, "full")
        < block_saved_bytes(block, "selective")
        < block_saved_bytes(block, "none")
    )


def test_the_peak_of_one_device_is_the_closed_form_of_the_head() -> None:
    """12·P + 4·T·d + layers·S + head: no gradients yet when the head's backward runs."""
    memory = step_memory(LLAMA, Configuration(16, 2048, 16), H100)
    block = BlockShape(LLAMA, sequences=16, seq=2048, dtype="bfloat16")
    blocks = LLAMA.layers * block_saved_bytes(block)
    expected = 12 * LLAMA.parameters + 4 * 16 * 2048 * 1024 + blocks + head_bytes(block)
    assert memory.total - memory.overhead == pytest.approx(expected)


@pytest.mark.parametrize(
    "change",
    [{"zero_stage": 1}, {"zero_stage": 3}, {"recompute": "full"}, {"recompute": "selective"}],
    ids=str,
)
def test_each_way_of_saving_memory_saves_memory(change: dict) -> None:
    plain = step_memory(LLAMA, Configuration(64, 2048, 4, dp=8), H100)
    assert step_memory(LLAMA, Configuration(64, 2048, 4, dp=8, **change), H100).total < plain.total


def test_tensor_ranks_split_more_with_sequence_parallelism() -> None:
    plain = step_memory(LLAMA, Configuration(8, 2048, 4, tp=4), H100)
    split = step_memory(LLAMA, Configuration(8, 2048, 4, tp=4, is_sequence_parallel=True), H100)
    assert split.activations < plain.activations
    assert split.parameters == plain.parameters == 4 * LLAMA.parameters / 4
