"""The doc's tables are made from plans, stand where they are made again, and hold a row for every kind of plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopar.capture.graph import Graph
from autopar.capture.precision import capture_in
from autopar.models import parse_model
from autopar.report.inter_and_intra import COLUMNS
from benchmarks.inter_and_intra import TABLES, kinds, with_tables

PAGE = Path(__file__).parents[2] / "docs" / "inter_and_intra.md"


@pytest.fixture(scope="module")
def graph() -> Graph:
    built = parse_model("gpt:layers=4,hidden=256,heads=4,vocab=512").build(global_batch=8, seq_len=128)
    return capture_in("fp16", built.module, built.args, built.kwargs)


def test_tables_are_replaced_and_nothing_else(graph: Graph) -> None:
    page = "before\n<!-- v100:2 -->\nold\n<!-- end -->\nbetween\n<!-- v100:1x4 -->\n<!-- end -->\nafter\n"
    made = with_tables(page, graph)
    assert "old" not in made
    assert made.startswith("before\n<!-- v100:2 -->\n| parallelism |")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "| inter-operator | pp 2 |" in made
    assert "| inter-operator | pp 4 |" in made
    assert len(TABLES.findall(made)) == 2


def test_the_doc_compares_all_kinds_of_plans() -> None:
    tables = [found.group() for found in TABLES.finditer(PAGE.read_text(encoding="utf-8"))]
    assert tables
    for table in tables:
        assert f"| {' | '.join(COLUMNS)} |" in table
        assert all(f"| {name} |" in table for name in kinds(1))
