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
"""Bytes per logit where the loss runs operator by operator in float32 (Megatron's vocabulary-parallel loss):
cast 2 + 4, maximum 4, subtract 8, exponential 8, sum 4, divide 4; backward: scale 8, cast 4 + 2, mask 2."""

FLASH_1_A100 = 2.0  # FlashAttention-2 (arXiv 2307.08691): twice as fast as its first version
FLASH_1_H100 = 2.0 * 463 / 295  # … and FlashAttention-2 on H100, causal, head dim 64, 8k tokens: 295 TFLOP/s
# (FlashAttention-3, arXiv 2407.08608, figure 5), against 463 of the profile

MEGATRON = Program(
    kernels=Kernels(attention="unfused", has_dropout=True, has_biases=True, logit_bytes=EAGER_LOSS),
    host_operators=(24, 48),
    overlaps_gradients=False,
    overlaps_pipeline_sends=False,
    gradient_bytes=2,
    accumulation_bytes=6.0,  # both operands and the sum, at 16 bits
)
NEMO = Program(
    kernels=Kernels(logit_bytes=EAGER_LOSS),
    overlaps_tensor_collectives=True,
    accumulation_bytes=6.0,  # float32 sum read and written by the product, instead of 2 B written
    optimizer_bytes=38.0,  # Adam 28, norm 4, scaling 4, 16-bit copy 2
)


def mosaic(gradient_bytes: int, attention_slowdown: float) -> Program:
    """Composer with FSDP: gradients are copied into flat buffers and cast to the type they are reduced in.

    llm-foundry's loss is fused by default (``loss_fn: fused_crossentropy``).
    """
    return Program(
        kernels=Kernels(attention_slowdown=attention_slowdown),
        host_operators=(20, 40),
        gradient_bytes=gradient_bytes,
        accumulation_bytes=6.0 + gradient_bytes,
    )


PROGRAMS: Mapping[tuple[str, str], Program] = {
    ("Megatron-LM 2021", "A100"): MEGATRON,
    ("Megatron-LM 2022", "A100"): MEGATRON,
    ("Megatron-DeepSpeed", "A100"): MEGATRON,
    ("NeMo / Megatron-Core", "H100"): NEMO,
    ("MaxText", "H100"): Program(),
    ("PAXML", "H100"): Program(),
    ("InternEvo", "A100"): Program(
        kernels=Kernels(attention_slowdown=FLASH_1_A100),
        host_operators=(20, 40),
        gradient_bytes=2,
        accumulation_bytes=6.0,
    ),
    ("Composer + PyTorch FSDP + FlashAttention, PURE", "A100"): mosaic(2, FLASH_1_A100),
    ("Composer + PyTorch FSDP + FlashAttention, DEFAULT", "A100"): mosaic(4, FLASH_1_A100),
    ("Composer + PyTorch FSDP + FlashAttention, DEFAULT", "H100"): mosaic(4, FLASH_1_H100),
}
"""Facts of each framework on each device, the same for all its rows."""

DEVICES = {
    "A100-SXM": "a100",
    "A100-SXM-80GB": "a100-80gb",
    "A100-SXM-40GB": "a100-40gb",
    "H100-SXM-80GB": "h100-tables",
}
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


def program_of(row: Mapping[str, str]) -> Program:
    """FSDP's mixed precision (DEFAULT reduces in float32, PURE in 16 bits) stands in the row's note."""
    mode = row["note"].partition("mixed precision ")[2].partition(",")[0]
    return PROGRAMS[row["framework"] + (f", {mode}" if mode else ""), row["gpu"][:4]]


def shape_of(row: Mapping[str, str]) -> TransformerShape:
    return TransformerShape(
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        ffn=int(row["ffn"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        vocab=int(row["vocab"]),
        has_gated_mlp=row["gated_mlp"] == "yes",
        has_rotary=row["gated_mlp"] == "yes" or row["model"].startswith("nemotron"),
    )


def configuration_of(row: Mapping[str, str]) -> Configuration:
    recompute = row["recompute"].split(" ")[0]
    words = {"full": "full", "selective": "selective", "save_qkv_proj": "full"}
    zero = row["zero_stage"]
    scope = zero.partition("zero1=")[2].rstrip(")") or row["fsdp"]
    zero_ranks = int(scope) if scope.isdigit() else 0
    return Configuration(
        global_batch=int(row["gbs_seqs"]),
        seq=int(row["seq_len"]),
        microbatch=int(row["mbs"]),
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        dp=int(row["dp"]),
        cp=int(row["cp"]),
        chunks=int(row["vp"] or 1) if int(row["pp"]) > 1 else 1,
        recompute=words.get(recompute, "none"),
        zero_stage=int(zero[0]) if zero else 0,
        zero_ranks=zero_ranks,
        is_sequence_parallel=row["seq_parallel"] == "yes",
        dtype="float16" if row["dtype"].startswith("fp16") else "bfloat16",
    )


def compare(rows: Iterable[Mapping[str, str]]) -> list[Comparison]:
    """Predictions for every row that says what it measured."""
    comparisons = []
    for row in rows:
        if not row["s_per_iter"]:
            continue
        step = training_step_s(shape_of(row), configuration_of(row), program_of(row), cluster_of(row))
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


def pick_regret(comparisons: Sequence[Comparison]) -> float:
    """How much slower the row that the model would pick is than the fastest."""
    pick = min(comparisons, key=lambda comparison: comparison.predicted_s)
    return pick.measured_s / min(comparison.measured_s for comparison in comparisons) - 1.0


def problems(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    """Rows that solve one problem under different plans: same model, batch, sequence and devices."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    keys = ("source", "model", "layers", "hidden", "seq_len", "gbs_seqs", "gpu", "n_gpus")
    for comparison in comparisons:
        groups.setdefault(tuple(comparison.row[key] for key in keys), []).append(comparison)
    return [
        group for group in groups.values() if len({plan_text(comparison.row) for comparison in group}) > 2
    ]


def plan_text(row: Mapping[str, str]) -> str:
    names = ("tp", "pp", "dp", "cp", "vp", "mbs", "recompute", "zero_stage", "seq_parallel")
    return " ".join(f"{name}={row[name].split(' ')[0]}" for name in names if row[name])


def summary(name: str, comparisons: Sequence[Comparison]) -> str:
    """One line of the table of errors."""
    errors = [abs(comparison.error) for comparison in comparisons]
    bias = statistics.median(comparison.error for comparison in comparisons)
    return (
        f"| {name} | {len(errors)} | {statistics.median(errors):.1%} | {quantile(errors, 0.9):.1%} "
        f"| {max(errors):.1%} | {bias:+.1%} |"
    )


def report(comparisons: Sequence[Comparison]) -> str:
    """The whole page, in Markdown."""
    return "\n".join(
        [
            "# Published training steps, predicted",
            "",
            "Generated by `python benchmarks/published_throughput.py THROUGHPUT.csv -o FILE`. Profiles are",
            "fitted on operator and collective tables and datasheets; no constant belongs to a row.",
            "Frameworks differ in what they run (`PROGRAMS` there). Error: predicted / measured − 1.",
            "",
            "| source | rows | median of error | 90th percentile | worst | bias |",
            "| --- | --- | --- | --- | --- | --- |",
            *_summaries(comparisons),
            "",
            *_choices(comparisons),
            "",
            f"{sum(map(has_stages, comparisons))} rows need pipeline stages (pp > 1 in their plan). They are priced",
            "with the closed form of their schedule, as the planner prices its own stages; one row of every kind goes",
            "through the planner itself, stages and all, in [published_planner.md](published_planner.md).",
            "",
            "| row | model | devices | plan | measured s | predicted s | error |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_line(comparison) for comparison in comparisons),
            "",
        ]
    )


def _summaries(comparisons: Sequence[Comparison]) -> list[str]:
    sources = dict.fromkeys(comparison.row["source"] for comparison in comparisons)
    by_source = [
        summary(source, [comparison for comparison in comparisons if comparison.row["source"] == source])
        for source in sources
    ]
    by_stages = [
        summary(name, [comparison for comparison in comparisons if has_stages(comparison) == wanted])
        for name, wanted in (("one stage", False), ("pipeline stages", True))
    ]
    return [*by_source, *by_stages, summary("all", comparisons)]


def has_stages(comparison: Comparison) -> bool:
    """True for rows that cannot be planned without pipeline stages."""
    return int(comparison.row["pp"]) > 1


def _choices(comparisons: Sequence[Comparison]) -> list[str]:
    """How well the model ranks plans of one problem."""
    groups = problems(comparisons)
    taus = [kendall_tau(group) for group in groups]
    regrets = [pick_regret(group) for group in groups]
    return [
        f"{len(groups)} problems appear under three or more plans: Kendall τ of predicted and measured order "
        f"is {statistics.mean(taus):.2f} in the mean; the model's pick is {statistics.mean(regrets):.1%} "
        f"slower than the fastest plan in the mean, {max(regrets):.1%} at worst."
    ]


def _line(comparison: Comparison) -> str:
    row = comparison.row
    devices = f"{row['n_gpus']} {row['gpu']}"
    seconds = f"{comparison.measured_s:.4g} | {comparison.predicted_s:.4g}"
    plan = f"seq={row['seq_len']} batch={row['gbs_seqs']} {plan_text(row)}"
    return f"| {row['row']} | {row['model']} | {devices} | {plan} | {seconds} | {comparison.error:+.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="file for the table")
    options = parser.parse_args()
    with options.csv.open(newline="") as file:
        comparisons = compare(csv.DictReader(file))
    if options.output is not None:
        options.output.write_text(report(comparisons), encoding="utf-8")
    print("\n".join(_summaries(comparisons) + _choices(comparisons)))


if __name__ == "__main__":
    main()
