"""Published rows are pinned as they ran, and the planner prices them as the closed form does."""

from __future__ import annotations

import pytest

from autopar.planner.pins import parse_pins
from benchmarks.llama3_405b import TABLE_4
from benchmarks.published_planner import Row, kind_of, model_of, pins_of, priced, sample, summary
from benchmarks.published_throughput import compare, report
from cost_models.training_step import Configuration

GPT = {
    **{"row": "1", "source": "somebody", "model": "GPT", "gpu": "A100-SXM-80GB", "interconnect": ""},
    **{"layers": "4", "hidden": "2048", "ffn": "8192", "heads": "16", "kv_heads": "16", "vocab": "32768"},
    **{"gated_mlp": "no", "seq_len": "1024", "gbs_seqs": "32", "mbs": "4", "dtype": "bf16", "note": ""},
    **{"gpus_per_node": "8", "n_gpus": "4", "tp": "1", "pp": "1", "dp": "4", "cp": "1", "vp": "1"},
    **{"fsdp": "", "recompute": "none", "zero_stage": "0", "seq_parallel": "no"},
    **{"framework": "Megatron-LM 2021", "s_per_iter": "0.1"},
}
LLAMA = {**GPT, "model": "llama", "gated_mlp": "yes", "kv_heads": "8", "ffn": "5504", "zero_stage": "1"}
PIPELINE = {**GPT, "pp": "2", "dp": "2", "recompute": "full"}
TENSOR = {**LLAMA, "tp": "2", "dp": "2"}


@pytest.mark.parametrize("row", [GPT, LLAMA, PIPELINE, TENSOR], ids=["gpt", "llama", "pipeline", "tensor"])
def test_planner_agrees_with_the_closed_form(row: dict[str, str]) -> None:
    found = priced(row)
    assert found.note == ""
    assert abs(found.difference) < 0.12


def test_pins_are_the_configuration() -> None:
    configuration = Configuration(256, 2048, 2, tp=4, pp=2, dp=8, chunks=3, recompute="full", zero_stage=1)
    pins = parse_pins(pins_of(configuration))
    assert (pins.pp, pins.chunks, pins.schedule, pins.microbatch) == (2, 3, "interleaved", 2)
    assert dict(pins.sizes) == {"tp": 4, "cp": 1, "dp_replicate": 1, "dp_shard": 8}
    assert (pins.zero, pins.recompute) == (1, "full")


def test_shards_within_a_node_are_replicated_between_nodes() -> None:
    pins = parse_pins(pins_of(Configuration(256, 2048, 2, dp=16, zero_stage=1, zero_ranks=8)))
    assert (pins.sizes["dp_replicate"], pins.sizes["dp_shard"], pins.zero) == (2, 8, 1)


def test_a_model_is_the_family_it_is_like() -> None:
    assert model_of(GPT) == "gpt:layers=4,hidden=2048,heads=16,ffn=8192,vocab=32768"
    assert model_of(LLAMA) == "llama:layers=4,hidden=2048,heads=16,ffn=5504,kv_heads=8,vocab=32768"


def test_one_row_of_every_kind_two_of_large_ones() -> None:
    rows = [{**GPT, "row": str(number)} for number in range(12)] + [
        PIPELINE,
        {**GPT, "model": "nemotron4-15b"},
    ]
    assert [row["row"] for row in sample(rows)] == ["0", "6", "1"]
    assert kind_of(GPT) != kind_of(PIPELINE)


def test_rows_with_stages_are_told_apart() -> None:
    page = report(compare([GPT, {**GPT, "dp": "2", "pp": "2"}, {**GPT, "mbs": "2"}, {**GPT, "mbs": "8"}]))
    assert "| one stage | 3 |" in page
    assert "| pipeline stages | 1 |" in page


def test_a_row_that_the_planner_cannot_price_is_counted_apart() -> None:
    rows = [Row(GPT, "", 1.0, 1.0, 1.0, 1.1, 0.0), Row(GPT, "", 1.0, 1.0, 1.0, 0.0, 0.0, "no")]
    assert summary(rows).startswith("1 of 2 rows")


def test_published_ranks_are_all_devices() -> None:
    for row in TABLE_4:
        assert row.tensor * row.context * row.pipeline * row.data == row.devices
        assert row.batch * row.sequence == 16 * 2**20
