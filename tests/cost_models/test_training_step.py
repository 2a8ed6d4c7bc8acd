"""Steps obey what parallelism can and cannot do, and published steps come out near what was measured."""

from __future__ import annotations

import pytest

from cost_models.cluster import parse_cluster
from cost_models.training_step import Configuration, Program, training_step_s
from cost_models.transformer import Kernels, TransformerShape

LLAMA_8B = TransformerShape(32, 4096, 14336, 32, 8, 128256, has_gated_mlp=True, has_rotary=True)
GPT_175B = TransformerShape(96, 12288, 49152, 96, 96, 51200)
EAGER = Program(
    kernels=Kernels("unfused", has_dropout=True, has_biases=True, logit_bytes=(34.0, 16.0)),
    overlaps_gradients=False,
    overlaps_pipeline_sends=False,
    gradient_bytes=2,
    accumulation_bytes=6.0,
)


def step_s(shape: TransformerShape, text: str, program: Program | None = None, **choices) -> float:
    configuration = Configuration(**({"global_batch": 64, "seq": 2048, "microbatch": 1} | choices))
    return training_step_s(shape, configuration, program or Program(), parse_cluster(text)).total_s


@pytest.mark.parametrize(
    ("source", "text", "choices", "measured_s"),
    [
        (
            "Narayanan et al. 2021, table 1, 145.6B",
            "a100-80gb:192x8",
            {
                "global_batch": 2304,
                "microbatch": 2,
                "tp": 8,
                "pp": 8,
                "dp": 24,
                "chunks": 2,
                "recompute": "full",
            },
            24.817,
        ),
        (
            "Korthikanti et al. 2022, table 5, 175B full recomputation",
            "a100-80gb:8x8",
            {"tp": 8, "pp": 8, "chunks": 3, "recompute": "full"},
            18.13,
        ),
        (
            "Korthikanti et al. 2022, table 5, 175B selective",
            "a100-80gb:8x8",
            {"tp": 8, "pp": 8, "chunks": 3, "recompute": "selective", "is_sequence_parallel": True},
            13.75,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_steps_are_predicted_within_ten_percent(
    source: str, text: str, choices: dict, measured_s: float
) -> None:
    layers = 80 if "145.6B" in source else 96
    shape = TransformerShape(layers, 12288, 49152, 96, 96, 51200)
    assert step_s(shape, text, EAGER, dtype="float16", **choices) == pytest.approx(measured_s, rel=0.10)


def test_no_step_beats_the_peak() -> None:
    flops = 6 * LLAMA_8B.parameters * 64 * 2048
    peak = 8 * parse_cluster("h100:8").device.peak("bfloat16")
    for choices in ({"dp": 8}, {"dp": 8, "zero_stage": 3}, {"tp": 8}, {"tp": 2, "pp": 4}, {"dp": 4, "cp": 2}):
        assert step_s(LLAMA_8B, "h100:8", **choices) > flops / peak


def test_recomputation_takes_time() -> None:
    none, selective, full = (
        step_s(LLAMA_8B, "h100:8", dp=8, recompute=recompute) for recompute in ("none", "selective", "full")
    )
    assert none < selective < full < 1.45 * none


def test_tensor_parallelism_over_the_network_is_slow() -> None:
    assert step_s(LLAMA_8B, "h100:2x8", tp=16) > 1.5 * step_s(LLAMA_8B, "h100:2x8", tp=8, dp=2)


def test_more_chunks_shrink_the_bubble() -> None:
    plain = step_s(GPT_175B, "a100:8x8", tp=8, pp=8)
    assert step_s(GPT_175B, "a100:8x8", tp=8, pp=8, chunks=4) < plain


def test_a_slow_host_sets_the_pace_of_small_models() -> None:
    small = TransformerShape(12, 256, 1024, 4, 4, 512)
    configuration = Configuration(8, 128, 1)
    cluster = parse_cluster("h100:1")
    free = training_step_s(small, configuration, Program(), cluster)
    bound = training_step_s(small, configuration, Program(host_operators=(20, 40)), cluster)
    assert bound.total_s > 2 * free.total_s
    assert bound.host_bound_share == pytest.approx(1.0)
    assert free.host_bound_share == 0.0


def test_a_batch_that_is_not_whole_microbatches_is_refused() -> None:
    with pytest.raises(ValueError, match="not whole microbatches of 3 on 8 data ranks"):
        Configuration(global_batch=64, seq=128, microbatch=3, dp=8)
