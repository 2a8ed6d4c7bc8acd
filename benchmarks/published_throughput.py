"""Predicts published training steps from each row's own configuration and writes the errors as a table.

    python benchmarks/published_throughput.py THROUGHPUT.csv -o benchmarks/results/published_throughput.md

Device profiles are fitted on operator and collective tables alone, never on these rows. What differs between
rows beside the configuration is the framework: which kernels it runs and what it overlaps (``PROGRAMS``).
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cost_models.cluster import Cluster, parse_cluster
from cost_models.training_step import Configuration, Program, training_step_s
from cost_models.transformer import Kernels, TransformerShape

EAGER_LOSS = (34.0, 16.0)
"""Bytes per logit where the loss runs operator by operator in float32 (Megatron's vocab_parallel_cross_entropy):
cast 2 + 4, maximum 4, subtract 8, exponential 8, sum 4, divide 4; backward: scale 8, write, cast 4 + 2."""

MEGATRON = Program(
    kernels=Kernels(attention="unfused", has_dropout=True, has_biases=True, logit_bytes=EAGER_LOSS),
    host_operators=(24, 48),
    overlaps_gradients=False,
    overlaps_pipeline_sends=False,
    gradient_bytes=2,
)
NEMO = Program(overlaps_tensor_collectives=True)
PROGRAMS: Mapping[str, Program] = {
    "Megatron-LM 2021": MEGATRON,
    "Megatron-LM 2022": MEGATRON,
    "Megatron-DeepSpeed": MEGATRON,
    "NeMo / Megatron-Core": NEMO,
    "MaxText": Program(),
    "PAXML": Program(),
    "InternEvo": Program(host_operators=(20, 40), gradient_bytes=2),
    "Composer + PyTorch FSDP + FlashAttention": Program(
        kernels=Kernels(attention="flash-1", logit_bytes=EAGER_LOSS), host_operators=(20, 40), gradient_bytes=2
    ),
}
DEVICES = {"A100-SXM": "a100", "A100-SXM-80GB": "a100-80gb", "A100-SXM-40GB": "a100-40gb", "H100-SXM-80GB": "h100"}
NETWORKS_GBPS = {"4x100Gb RoCE per node": 50.0}
"""Networks that differ from the profile's usual one, per device."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: measured beside predicted seconds per step."""

    row: Mapping[str, str]
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Positive when the prediction is too slow."""
        return self.predicted_s / self.measured_s - 1.0


def cluster_of(row: Mapping[str, str]) -> Cluster:
    devices, per_node = int(row["n_gpus"]), int(row["gpus_per_node"])
    shape = f"{-(-devices // per_node)}x{per_node}" if devices > per_node else str(devices)
    network = NETWORKS_GBPS.get(row["interconnect"])
    return parse_cluster(f"{DEVICES[row['gpu']]}:{shape}" + (f"@{network:g}Gbps" if network else ""))


def shape_of(row: Mapping[str, str]) -> TransformerShape:
    return TransformerShape(
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        ffn=int(row["ffn"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        vocab=int(row["vocab"]),
        has_gated_mlp=row["gated_mlp"] == "yes",
    )


def configuration_of(row: Mapping[str, str]) -> Configuration:
    recompute = row["recompute"].split(" ")[0]
    zero = row["zero_stage"]
    scope = "".join(character for character in zero.partition("zero1=")[2] if character.isdigit())
    return Configuration(
        global_batch=int(row["gbs_seqs"]),
        seq=int(row["seq_len"]),
        microbatch=int(row["mbs"]),
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        dp=int(row["dp"]),
        cp=int(row["cp"]),
        chunks=int(row["vp"] or 1) if int(row["pp"]) > 1 else 1,
        recompute={"full": "full", "selective": "selective", "save_qkv_proj": "full"}.get(recompute, "none"),
        zero_stage=int(zero[0]) if zero else 0,
        zero_ranks=int(scope) if scope and "-1" not in zero else int(row["fsdp"]) if row["fsdp"].isdigit() else 0,
        is_sequence_parallel=row["seq_parallel"] == "yes",
        dtype="float16" if row["dtype"].startswith("fp16") else "bfloat16",
    )


def compare(rows: Iterable[Mapping[str, str]]) -> list[Comparison]:
    """Predictions for every row that says what it measured."""
    comparisons = []
    for row in rows:
        if not row["s_per_iter"]:
            continue
        step = training_step_s(shape_of(row), configuration_of(row), PROGRAMS[row["framework"]], cluster_of(row))
        comparisons.append(Comparison(row, float(row["s_per_iter"]), step.total_s))
    return comparisons


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def kendall_tau(comparisons: Sequence[Comparison]) -> float:
    """Rank correlation of predicted and measured seconds."""
    signs = [
        (a.predicted_s - b.predicted_s) * (a.measured_s - b.measured_s)
        for i, a in enumerate(comparisons)
        for b in comparisons[:i]
    ]
    return sum((sign > 0) - (sign < 0) for sign in signs) / max(len(signs), 1)


def summary(name: str, comparisons: Sequence[Comparison]) -> str:
    errors = [abs(comparison.error) for comparison in comparisons]
    bias = statistics.median(comparison.error for comparison in comparisons)
    return (
        f"| {name} | {len(errors)} | {statistics.median(errors):.1%} | {quantile(errors, 0.9):.1%} "
        f"| {max(errors):.1%} | {bias:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with options.csv.open(newline="") as file:
        comparisons = compare(csv.DictReader(file))
    for source in dict.fromkeys(comparison.row["source"] for comparison in comparisons):
        print(summary(source, [comparison for comparison in comparisons if comparison.row["source"] == source]))
    print(summary("all", comparisons))


if __name__ == "__main__":
    main()
