"""Alpa's GPT family on 1 to 64 V100: the plan that the search finds beside the plan that Alpa published.

    python benchmarks/alpa_gpt.py [--only NAME] [-o benchmarks/results/alpa_gpt.md]

Both are priced by the same cost model; what Alpa measured stands beside them. Sizes and plans: Zheng et al., "Alpa:
Automating inter- and intra-operator parallelism for distributed deep learning" (OSDI 2022), and its artifact.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.errors import InfeasiblePlanError
from autopar.models import parse_model
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, plan_graph
from autopar.report.anatomy import anatomy
from cost_models.cluster import Cluster
from cost_models.schedules import pipeline_s

BATCH, SEQUENCE, VOCABULARY = 1024, 1024, 51200
NETWORK_GBPS = 25 / 8
"""Of one device: AWS p3.16xlarge has 25 Gbit/s for 8 V100."""
UNLIMITED_BYTES = 2**62
GB, TERA, PETA = 10**9, 10**12, 10**15


@dataclass(frozen=True, slots=True)
class Submesh:
    """One stage of a published plan."""

    blocks: int
    data: int
    operator: int

    @property
    def devices(self) -> int:
        return self.data * self.operator


@dataclass(frozen=True, slots=True)
class Published:
    """One model of the family, the plan that Alpa found for it, and what was measured."""

    name: str
    layers: int
    hidden: int
    heads: int
    stages: tuple[Submesh, ...]
    microbatches: int
    measured_tflops: float
    """Of one GPU under this plan, recomputation counted: ``parax.auto`` in osdi22_artifact/results_e2e.tsv."""

    @property
    def devices(self) -> int:
        return sum(stage.devices for stage in self.stages)

    @property
    def cluster(self) -> str:
        nodes = -(-self.devices // 8)
        return f"v100:{nodes}x{min(self.devices, 8)}@{NETWORK_GBPS:g}Gbps"

    @property
    def model(self) -> str:
        return f"gpt:layers={self.layers},hidden={self.hidden},heads={self.heads},vocab={VOCABULARY}"

    @property
    def is_equal(self) -> bool:
        """True when all stages are alike, as this planner's are."""
        return len(set(self.stages)) == 1

    @property
    def counted_flops(self) -> float:
        """FLOPs of a step as Alpa counts them: 96·B·s·h²·L·(1 + s/6h) + 6·B·s·h·V, one recomputation included."""
        tokens, wide = BATCH * SEQUENCE, self.hidden
        blocks = 96 * tokens * wide**2 * self.layers * (1 + SEQUENCE / (6 * wide))
        return blocks + 6 * tokens * wide * VOCABULARY

    def text(self) -> str:
        """Stages by their blocks and (data, operator) submesh."""
        runs = [
            f"{self.stages.count(stage)} × {stage.blocks} blocks on ({stage.data}, {stage.operator})"
            for stage in dict.fromkeys(self.stages)
        ]
        return f"{' + '.join(runs)}, recompute full, {self.microbatches} microbatches"


def _equal(count: int, *, blocks: int, data: int = 1, operator: int = 1) -> tuple[Submesh, ...]:
    return (Submesh(blocks, data, operator),) * count


FAMILY = (
    Published("350M", 24, 1024, 16, _equal(1, blocks=24), 512, 45.07),
    Published("760M", 24, 1536, 16, _equal(2, blocks=12), 128, 57.92),
    Published("1.3B", 24, 2048, 32, _equal(2, blocks=12, data=2), 128, 58.21),
    Published(
        "2.6B", 32, 2560, 32, (*_equal(2, blocks=8, data=2), *_equal(1, blocks=16, data=4)), 128, 61.61
    ),
    Published("6.7B", 32, 4096, 32, _equal(2, blocks=16, data=2, operator=4), 64, 60.0),
    Published("15B", 48, 5120, 40, _equal(4, blocks=12, data=2, operator=4), 128, 59.9),
    Published("39B", 48, 8192, 64, _equal(16, blocks=3, operator=4), 1024, 57.0),
)


@dataclass(frozen=True, slots=True)
class Priced:
    """A plan and what it is predicted to take."""

    text: str
    step_s: float
    peak_bytes: int
    """That the fullest device allocates; 0 where it was not worked out."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model: the plan found, the plan published, and how long the search took."""

    published: Published
    found: Priced
    pinned: Priced
    search_s: float
    """Processor seconds, capture left out."""

    @property
    def gain(self) -> float:
        """How much more throughput the found plan has than the published one, both predicted."""
        return self.pinned.step_s / self.found.step_s - 1.0


def answer(published: Published) -> Answer:
    """Searches, and prices the published plan."""
    built = parse_model(published.model).build(global_batch=BATCH, seq_len=SEQUENCE)
    graph = capture_in("fp16", built.module, built.args, built.kwargs)
    cluster = cluster_named(published.cluster)
    start_s = time.process_time()
    found = planned(graph, cluster)
    search_s = time.process_time() - start_s
    pinned = pinned_plan if published.is_equal else unequal_plan
    return Answer(published, priced(found), pinned(published, graph, cluster), search_s)


def planned(graph: Graph, cluster: Cluster, pins: str = "", memory_bytes: int | None = None) -> Plan:
    """The best plan under pins. Raises ``InfeasiblePlanError``."""
    return plan_graph(graph, cluster, PlanOptions(pins, memory_bytes, precision="fp16"))


def priced(plan: Plan, note: str = "") -> Priced:
    predicted = plan.predicted
    return Priced(plan_text(plan), predicted.step_time_s, predicted.peak_memory_bytes, note)


def plan_text(plan: Plan) -> str:
    """Mesh and execution in short: ``pp 2 × dp_shard 8, 1f1b, zero 3, recompute selective, 64 microbatches``."""
    parts = [" × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh) or "one device"]
    if plan.schedule.name != "none":
        chunks = len(plan.stages) // plan.mesh[0].size
        parts.append(plan.schedule.name + (f" of {chunks} stages a rank" if chunks > 1 else ""))
    if plan.stages[0].zero:
        parts.append(f"zero {plan.stages[0].zero}")
    levels = dict.fromkeys(stage.recompute for stage in plan.stages)
    parts += [f"recompute {' / '.join(levels)}"] if set(levels) != {"none"} else []
    return ", ".join([*parts, f"{plan.schedule.microbatches} microbatches"])


def pinned_plan(published: Published, graph: Graph, cluster: Cluster) -> Priced:
    """A published plan of equal stages under the ZeRO level that is fastest, or the leanest where none fits."""
    plans = list(fitting(published, graph, cluster))
    if plans:
        return priced(min(plans, key=_step_s))
    anyway = [planned(graph, cluster, pins, UNLIMITED_BYTES) for pins in pins_of(published)]
    leanest = min(anyway, key=lambda plan: plan.predicted.peak_memory_bytes)
    return priced(leanest, "does not fit by this model of memory")


def _step_s(plan: Plan) -> float:
    return plan.predicted.step_time_s


def fitting(published: Published, graph: Graph, cluster: Cluster) -> Iterator[Plan]:
    """The published plan with parameters replicated, and resting sharded, as far as that fits."""
    for pins in pins_of(published):
        try:
            yield planned(graph, cluster, pins)
        except InfeasiblePlanError:
            continue


def pins_of(published: Published) -> Iterator[str]:
    """The published plan as pins: data ranks as replicas, and with what rests sharded free."""
    stage, count = published.stages[0], len(published.stages)
    sequences = BATCH // (published.microbatches * stage.data)
    common = f"pp={count},tp={stage.operator},cp=1,microbatch={sequences},recompute=full"
    if count > 1:
        common += ",schedule=1f1b"
    yield f"{common},dp_shard=1,dp_replicate={stage.data}"
    if stage.data > 1:
        yield f"{common},dp_shard={stage.data}"


def unequal_plan(published: Published, graph: Graph, cluster: Cluster) -> Priced:
    """A plan of unequal stages, which this planner cannot express, summed up from plans of equal ones.

    Every kind of submesh is planned as if all stages were like it: that gives the seconds of a block, of what comes
    before the first and after the last one, and of the optimizer.
    """
    likes = {stage: _like(stage, published, graph, cluster) for stage in dict.fromkeys(published.stages)}
    seconds, upkeeps_s = [], []
    for place, stage in enumerate(published.stages):
        like = likes[stage]
        ends_s = like.first_s * (place == 0) + like.last_s * (place == len(published.stages) - 1)
        seconds.append(stage.blocks * like.block_s + ends_s)
        upkeeps_s.append(stage.blocks / published.layers * like.upkeep_s)
    step_s = pipeline_s("1f1b", seconds, microbatches=published.microbatches) + max(upkeeps_s)
    note = "summed up from plans of equal submeshes, memory not checked"
    return Priced(published.text(), step_s, 0, note)


@dataclass(frozen=True, slots=True)
class Like:
    """What blocks take on one kind of submesh, for one microbatch."""

    block_s: float
    first_s: float
    last_s: float
    upkeep_s: float
    """Optimizer of all parameters, a step; gradients are summed beside compute."""


def _like(stage: Submesh, published: Published, graph: Graph, cluster: Cluster) -> Like:
    count = cluster.devices // stage.devices
    blocks = published.layers // count
    alike = replace(published, stages=_equal(count, blocks=blocks, data=stage.data, operator=stage.operator))
    return like_of(min(fitting(alike, graph, cluster), key=_step_s))


def like_of(plan: Plan) -> Like:
    """Prices of a plan by segment call: the repeated block, and the calls around the blocks."""
    calls = [call for stage in plan.stages for call in stage.segments]
    blocks = [place for place, call in enumerate(calls) if call.module]
    seconds = [_call_s(plan, call.type) for call in calls]
    realized = anatomy(plan).realized
    return Like(
        seconds[blocks[0]],
        sum(seconds[: blocks[0]]),
        sum(seconds[blocks[-1] + 1 :]),
        sum(realized.upkeep_s.values()) - realized.traffic_s,
    )


def _call_s(plan: Plan, type_name: str) -> float:
    """Forward and backward of one call of a segment type, its conversions included."""
    segment = next(segment for segment in plan.segments if segment.name == type_name)
    conversions = [each for each in plan.conversions if each.tensor.startswith(f"{type_name}.")]
    return sum(each.forward_s + each.backward_s for each in segment.operators) + sum(
        each.seconds_s / each.count for each in conversions
    )


def table(answers: Iterable[Answer]) -> str:
    """The answers as Markdown."""
    columns = (
        *("model", "V100", "found plan", "step s", "PFLOP/s", "tokens/s", "GB", "search s"),
        *("Alpa's plan, priced alike", "step s", "PFLOP/s", "tokens/s", "GB"),
        *("found against Alpa's", "measured PFLOP/s", "Alpa's plan, predicted against measured"),
    )
    rows = [columns, tuple("---" for _ in columns), *map(_row, answers)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(each: Answer) -> tuple[str, ...]:
    published, measured = each.published, each.published.devices * each.published.measured_tflops * TERA
    predicted = published.counted_flops / each.pinned.step_s
    return (
        published.name,
        str(published.devices),
        *_figures(each.found, published),
        f"{each.search_s:.1f}",
        *_figures(each.pinned, published),
        f"{each.gain:+.1%}",
        f"{measured / PETA:.3f}",
        f"{predicted / measured - 1:+.0%}",
    )


def _figures(plan: Priced, published: Published) -> tuple[str, ...]:
    return (
        plan.text + (f" ({plan.note})" if plan.note else ""),
        f"{plan.step_s:.1f}",
        f"{published.counted_flops / plan.step_s / PETA:.3f}",
        f"{BATCH * SEQUENCE / plan.step_s:,.0f}",
        f"{plan.peak_bytes / GB:.1f}" if plan.peak_bytes else "—",
    )


def misses(answers: Iterable[Answer]) -> list[str]:
    """Models for which a published plan is predicted to be faster than the one found."""
    return [
        f"{each.published.name}: the published plan is predicted to be {-each.gain:.1%} faster"
        for each in answers
        if each.gain < 0
    ]


def page(answers: Sequence[Answer], command: str) -> str:
    """The result file."""
    lines = [f"- {line}" for line in misses(answers)] or ["No published plan is predicted to be faster."]
    return "\n".join(
        [
            "# Alpa's GPT family: found plans beside published ones",
            "",
            f"Generated by `{command}` on {datetime.date.today().isoformat()}.",
            "",
            f"fp16, {BATCH} sequences of {SEQUENCE}, vocabulary {VOCABULARY}; profile `v100-16gb`, "
            f"{NETWORK_GBPS:g} Gbit/s a device between nodes (`--cluster {answers[-1].published.cluster}`).",
            "Step and memory (GB that the fullest device allocates) are predicted, by the same cost model, which was",
            "not fitted on any of this. PFLOP/s and tokens/s are of all devices; FLOPs are counted as Alpa counts",
            "them, whatever the plan recomputes: 96·B·s·h²·L·(1 + s/6h) + 6·B·s·h·V a step, a full recomputation",
            "included. Alpa's plan is priced with full recomputation and 1F1B, as it ran, under the ZeRO level that",
            "is fastest for it. Measured: `parax.auto` of osdi22_artifact/results_e2e.tsv in alpa-projects/alpa.",
            "Search: processor seconds, capture left out.",
            "",
            table(answers),
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="ask about this model alone: 350M … 39B")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    asked = [each for each in FAMILY if options.only in (None, each.name)]
    if not asked:
        parser.error(f"unknown model {options.only!r}; known: {', '.join(each.name for each in FAMILY)}")
    answers = []
    for published in asked:
        answers.append(answer(published))
        print(table(answers[-1:]).splitlines()[-1], flush=True)
    if options.output:
        command = " ".join(["python", "benchmarks/alpa_gpt.py", *sys.argv[1:]])
        options.output.write_text(page(answers, command), encoding="utf-8")
    print(*misses(answers), sep="\n")


if __name__ == "__main__":
    main()
