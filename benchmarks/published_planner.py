"""Published rows pinned and priced through the planner itself, beside the closed form and what was measured.

    python -m benchmarks.published_planner THROUGHPUT.csv -o benchmarks/results/published_planner.md

``benchmarks/published_throughput.py`` predicts all rows by a closed form, each with its framework's own program.
Here one row of every kind goes through ``autopar.planner.search`` too, its configuration pinned. The planner knows
autopar's program only, so it is compared with the closed form of that program.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.errors import AutoparError
from autopar.models import parse_model
from autopar.planner.pins import parse_pins
from autopar.planner.search import Options, Tried, search
from benchmarks.published_throughput import (
    cluster_of,
    configuration_of,
    program_of,
    quantile,
    shape_of,
)
from cost_models.training_step import Configuration, Program, training_step_s
from cost_models.transformer import Kernels

UNLIMITED_BYTES = 2**62
REASONS = (
    "What sets the two apart, as the parts of both prices show:",
    "",
    "- **Full recomputation**: the planner leaves out what no gradient reads again (the last product of a block and",
    "  its reduction), as the compiled program does; the closed form repeats whole blocks, as eager programs do.",
    "- **Context ranks**: the planner gathers keys and values before attention and prices the rank with the last,",
    "  longest part of the causal mask, as autopar's program runs; the closed form exchanges them behind compute and",
    "  splits the mask evenly, as Megatron does.",
    "- **Data-parallel traffic**: the planner hides all of it behind the operators of the whole step and counts no",
    "  slowdown; the closed form shows what of the embedding's nothing hides, sums gradients beside the backward",
    "  alone, and slows down what runs beside them. Replicas of shards are summed by one all-reduce of everything in",
    "  the closed form, by shard in the planner.",
    "- **Sizes that do not divide** (an ffn of 10,923, a vocabulary of 50,257): the planner leaves such products whole",
    "  or gathers around it; the closed form divides anyway, as a program with padding does.",
    "- **Latency of large groups**: the planner prices gathers and sums as parts of collectives of 64 MiB; FSDP",
    "  sends a block as one, which takes a quarter of the time on 512 ranks (the closed form prices blocks).",
    "- **Adding up gradients** of microbatches (12 bytes a weight and microbatch) is in neither.",
    "- **Small kernels** (hidden 1,024, one sequence): the planner counts each kernel of a block, casts of weights",
    "  included; the closed form moves their bytes.",
    "",
)
WEIGHT_CASTS = 12.0
"""Bytes a weight and microbatch: read at 32 bits and written at 16 forward, its gradient the other way backward."""
SOME = 12
"""Of a kind with at least so many rows, the one in the middle is taken too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published row and its three figures."""

    row: Mapping[str, str]
    pins: str
    measured_s: float
    framework_s: float
    """Closed form of the framework's program."""
    closed_s: float
    """Closed form of autopar's program."""
    planner_s: float
    """0 where the planner could not."""
    search_s: float
    """Processor seconds."""
    note: str = ""

    @property
    def difference(self) -> float:
        """Planner against closed form of the same program."""
        return self.planner_s / self.closed_s - 1.0


def kind_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """Rows alike in source and in which kinds of parallelism and recomputation they use are one kind."""
    sizes = ("pp", "tp", "cp", "dp", "vp")
    used = tuple(name for name in sizes if int(row[name] or 1) > 1)
    recompute, zero = row["recompute"].split(" ")[0], row["zero_stage"][:13]
    return (row["source"], row["gated_mlp"], *used, recompute, zero, row["seq_parallel"])


def sample(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """One row of every kind, two of large kinds."""
    kinds: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["s_per_iter"] and is_expressible(row):
            kinds.setdefault(kind_of(row), []).append(row)
    return [row for group in kinds.values() for row in _of_kind(group)]


def _of_kind(group: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [group[0], *([group[len(group) // 2]] if len(group) >= SOME else [])]


def is_expressible(row: Mapping[str, str]) -> bool:
    """Models like the built-in families; Nemotron (rotary positions, no gate) is like neither."""
    return not row["model"].startswith("nemotron")


def model_of(row: Mapping[str, str]) -> str:
    """The row's model as a built-in family."""
    sizes = f"layers={row['layers']},hidden={row['hidden']},heads={row['heads']},ffn={row['ffn']}"
    if row["gated_mlp"] == "yes":
        return f"llama:{sizes},kv_heads={row['kv_heads']},vocab={row['vocab']}"
    return f"gpt:{sizes},vocab={row['vocab']}"


def pins_of(configuration: Configuration) -> str:
    """The configuration as pins; operators stay free along the tensor axis."""
    c = configuration
    pins = {"pp": c.pp, "tp": c.tp, "cp": c.cp, "microbatch": c.microbatch, "recompute": c.recompute}
    if c.pp > 1:
        pins["schedule"] = c.schedule
        pins |= {"chunks": c.chunks} if c.chunks > 1 else {}
    shards = c.zero_ranks or c.dp
    if c.zero_stage == 0 or shards == 1:
        pins |= {"dp_replicate": c.dp, "dp_shard": 1}
    else:
        pins |= {"dp_replicate": c.dp // shards, "dp_shard": shards, "zero": c.zero_stage}
    return ",".join(f"{key}={value}" for key, value in pins.items())


def own_program(row: Mapping[str, str]) -> Program:
    """autopar's program: compiled, flash attention, gradients summed at 32 bits beside compute."""
    return Program(
        kernels=Kernels(has_biases=row["gated_mlp"] != "yes"),
        accumulation_bytes=WEIGHT_CASTS,
    )


def priced(row: Mapping[str, str]) -> Row:
    """All figures of one row."""
    shape, configuration, cluster = shape_of(row), configuration_of(row), cluster_of(row)
    framework_s = training_step_s(shape, configuration, program_of(row), cluster).total_s
    # The planner splits norms over tensor ranks where that is faster, as sequence parallelism does.
    alike = replace(configuration, is_sequence_parallel=configuration.tp > 1)
    closed_s = training_step_s(shape, alike, own_program(row), cluster).total_s
    pins, note, planner_s, start_s = pins_of(configuration), "", 0.0, time.process_time()
    try:
        planner_s = planned(row, pins).step_s
    except AutoparError as error:
        note = str(error).partition(". ")[0]
    search_s = time.process_time() - start_s
    return Row(row, pins, float(row["s_per_iter"]), framework_s, closed_s, planner_s, search_s, note)


def planned(row: Mapping[str, str], pins: str) -> Tried:
    """The best plan under pins, whatever memory it takes. Raises ``AutoparError``."""
    graph = _captured(model_of(row), int(row["gbs_seqs"]), int(row["seq_len"]), row["dtype"][:4])
    options = Options(parse_pins(pins), UNLIMITED_BYTES, is_compiled=True)
    return search(graph, cluster_of(row), options).best


@lru_cache(maxsize=4)
def _captured(model: str, batch: int, tokens: int, precision: str) -> Graph:
    built = parse_model(model).build(global_batch=batch, seq_len=tokens)
    return capture_in(precision, built.module, built.args, built.kwargs)


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    columns = (
        *(
            "row",
            "model",
            "devices",
            "pinned",
            "measured s",
            "closed form, its program s",
            "against measured",
        ),
        *("closed form, autopar's program s", "planner s", "planner against closed form", "search s"),
    )
    lines = [columns, tuple("---" for _ in columns), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(each: Row) -> tuple[str, ...]:
    row = each.row
    planner = (f"{each.planner_s:.4g}", f"{each.difference:+.1%}") if each.planner_s else (each.note, "—")
    return (
        row["row"],
        row["model"],
        f"{row['n_gpus']} {row['gpu']}",
        f"seq={row['seq_len']} batch={row['gbs_seqs']} {each.pins}",
        f"{each.measured_s:.4g}",
        f"{each.framework_s:.4g}",
        f"{each.framework_s / each.measured_s - 1.0:+.1%}",
        f"{each.closed_s:.4g}",
        *planner,
        f"{each.search_s:.1f}",
    )


def summary(rows: Sequence[Row]) -> str:
    """How far planner and closed form are apart, in words."""
    known = [each for each in rows if each.planner_s]
    apart = [abs(each.difference) for each in known]
    bias = statistics.median(each.difference for each in known)
    return (
        f"{len(known)} of {len(rows)} rows priced by the planner; against the closed form of the same program: "
        f"median of the difference {statistics.median(apart):.1%}, 90th percentile {quantile(apart, 0.9):.1%}, "
        f"worst {max(apart):.1%}, bias {bias:+.1%}."
    )


def page(rows: Sequence[Row], command: str) -> str:
    """The result file."""
    return "\n".join(
        [
            "# Published configurations through the planner",
            "",
            f"Generated by `{command}` on {datetime.date.today().isoformat()}.",
            "",
            "One row of every kind of published_throughput.md (source, parallelism, recomputation, ZeRO), two of",
            f"kinds with {SOME} rows or more, pinned in `autopar.planner.search`. The planner prices autopar's own",
            "program (compiled, flash attention, float32 gradients summed beside compute); what it is compared with is",
            "the closed form of that program. *Its program* is the closed form with the framework's kernels, as in",
            "published_throughput.md. Nemotron (rotary positions, no gate) is like no built-in family and left out.",
            "",
            summary(rows),
            "",
            table(rows),
            "",
            *REASONS,
            "",
        ]
    )


def rows_of(path: Path, only: Sequence[str]) -> Iterator[Row]:
    with path.open(newline="") as file:
        chosen = sample(csv.DictReader(file))
    for row in chosen:
        if not only or row["row"] in only:
            yield priced(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--only", nargs="*", default=(), metavar="ROW", help="these rows of the sample alone")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    rows = []
    for row in rows_of(options.csv, options.only):
        rows.append(row)
        print(" | ".join(_cells(row)), flush=True)
    print(summary(rows))
    if options.output:
        command = " ".join(["python -m benchmarks.published_planner", "THROUGHPUT.csv", *sys.argv[2:]])
        options.output.write_text(page(rows, command), encoding="utf-8")


if __name__ == "__main__":
    main()
