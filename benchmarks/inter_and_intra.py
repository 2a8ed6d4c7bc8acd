"""Inter- against intra-operator parallelism of one model: writes the tables of docs/inter_and_intra.md.

    python -m benchmarks.inter_and_intra docs/inter_and_intra.md

Each table stands between ``<!-- CLUSTER -->`` and ``<!-- end -->``; everything else in the file stays as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.clusters import cluster_named
from autopar.models import parse_model
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, plan_graph
from autopar.report.inter_and_intra import device_step, inter_and_intra_markdown

MODEL, BATCH, TOKENS, PRECISION = "gpt:layers=48,hidden=5120,heads=40,vocab=51200", 1024, 1024, "fp16"
"""Alpa's GPT-15B (OSDI 2022)."""
TABLES = re.compile(r"(<!-- (?P<cluster>[^>]+:[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kinds(devices: int) -> Mapping[str, str]:
    """Pins for stages alone, for none, and for whatever the search makes of both."""
    return {"inter-operator": f"pp={devices}", "intra-operator": "pp=1", "what the search picks": ""}


def plans(graph: Graph, cluster_text: str) -> dict[str, Plan]:
    cluster = cluster_named(cluster_text)
    return {
        name: plan_graph(graph, cluster, PlanOptions(pins, precision=PRECISION))
        for name, pins in kinds(cluster.devices).items()
    }


def with_tables(page: str, graph: Graph) -> str:
    """The page with every table made again."""

    def made(found: re.Match[str]) -> str:
        steps = [device_step(name, plan) for name, plan in plans(graph, found["cluster"]).items()]
        return f"{found[1]}{inter_and_intra_markdown(steps)}\n{found[3]}"

    return TABLES.sub(made, page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    path = parser.parse_args().page
    built = parse_model(MODEL).build(global_batch=BATCH, seq_len=TOKENS)
    graph = capture_in(PRECISION, built.module, built.args, built.kwargs)
    page = path.read_text(encoding="utf-8")
    if not TABLES.search(page):
        parser.error(f"{path} has no table: write <!-- v100:8 --> and <!-- end --> where one shall stand")
    path.write_text(with_tables(page, graph), encoding="utf-8")


if __name__ == "__main__":
    main()
