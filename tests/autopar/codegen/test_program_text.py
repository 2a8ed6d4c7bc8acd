"""Programs are meant to be read: golden texts, and what holds for the text of every program."""

from __future__ import annotations

import ast
import builtins
import re
import types
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from autopar import runtime
from autopar.capture.graph import Operator, SegmentType, Value
from autopar.codegen.lines import CODE_WIDTH, Line, layout_lines, statement
from autopar.codegen.program import program_source
from autopar.codegen.user_names import user_names
from autopar.planning import generate_program
from autopar.shardings.sharded import ShardedGraph
from tests.autopar.codegen.running import loaded
from tests.autopar.planner.planning_cases import MODELS, found, plan_of

GOLDEN = Path(__file__).parent / "golden"
CASES = [(model, "cpu:4", "tp=2,dp_shard=2") for model in MODELS] + [
    ("gpt", "cpu:2", "tp=2"),
    ("llama", "cpu:2", "cp=2"),
    ("llama", "cpu:4", "dp_replicate=4"),
    ("gpt", "cpu:1", ""),
]


@cache
def _source(model: str, cluster: str, pins: str) -> str:
    return generate_program(plan_of(model, cluster, pins))


def _class(source: str, name: str) -> str:
    """One class of a program, without the line numbers of the user's files."""
    text = re.search(rf"^class {name}\(.*?(?=^\S)", source, re.MULTILINE | re.DOTALL)
    assert text is not None
    return re.sub(r"(# \w+\.py):\d+ +", r"\1 ", text[0]).rstrip() + "\n"


@pytest.mark.parametrize(
    ("golden", "case", "name"),
    [
        ("gpt_block_tp_2", ("gpt", "cpu:2", "tp=2"), "GPTBlock"),
        ("gpt_root_tp_2", ("gpt", "cpu:2", "tp=2"), "Root"),
        ("gpt_head_tp_2", ("gpt", "cpu:2", "tp=2"), "Head"),
        ("llama_block_cp_2", ("llama", "cpu:2", "cp=2"), "LlamaBlock"),
    ],
)
def test_classes_read_as_a_person_would_write_them(
    golden: str, case: tuple[str, str, str], name: str
) -> None:
    """After a deliberate change, write the new text over the file in ``golden``."""
    expected = (GOLDEN / f"{golden}.txt").read_text(encoding="utf-8")
    assert _class(_source(*case), name) == expected


def _functions(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_every_name_that_a_program_uses_is_defined(case: tuple[str, str, str]) -> None:
    tree = ast.parse(_source(*case))
    outer = {*dir(builtins), "__name__"} | _bound(tree.body)
    for function in _functions(_source(*case)):
        arguments = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
        known = outer | arguments | _bound(function.body)
        used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert used <= known, used - known


def _bound(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind, whatever they are nested in."""
    names = set()
    for node in (inner for each in body for inner in ast.walk(each)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_program_imports_what_it_uses_from_torch_and_the_runtime_alone(case: tuple[str, str, str]) -> None:
    source = _source(*case)
    tree = ast.parse(source)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "torch", "torch.nn", "autopar.runtime"}
    names = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "autopar.runtime"
        for alias in node.names
    ]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(names) <= used | {"Running"}
    assert set(names) <= set(runtime.__all__)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_lines_are_short(case: tuple[str, str, str]) -> None:
    for line in _source(*case).splitlines():
        is_free = line.lstrip().startswith(("#", "Parameter("))
        assert is_free or "backward:" in line or len(line) <= 120, line


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_tables_say_what_the_plan_says(case: tuple[str, str, str]) -> None:
    plan, program = plan_of(*case), loaded(_source(*case))
    assert program["MESH"] == {axis.axis: axis.size for axis in plan.mesh}
    by_kind = {"replicate": "REPLICATE_AXES", "shard": "SHARD_AXES", "model": "MODEL_AXES"}
    for kind, table in by_kind.items():
        assert program[table] == tuple(axis.axis for axis in plan.mesh if axis.parameters == kind)
    written = [(p.name, p.layout, p.alias_of, p.is_buffer, p.is_persistent) for p in program["PARAMETERS"]]
    assert written == [
        (p.name, p.layout, p.alias_of, p.kind != "parameter", p.kind != "temporary buffer")
        for p in plan.parameters
    ]
    tensors = [f"{str(p.dtype).removeprefix('torch.')}{list(p.shape)}" for p in program["PARAMETERS"]]
    assert tensors == [p.tensor.removesuffix(" grad") for p in plan.parameters]
    assert [(i.path, i.layout) for i in program["INPUTS"]] == [(i.path, i.layout) for i in plan.inputs]
    blocks = {c.module: c.type for stage in plan.stages for c in stage.segments if c.module}
    assert {path: kind.__name__ for path, kind in program["BLOCKS"].items()} == blocks


def test_a_collective_is_written_once_for_all_its_readers() -> None:
    """q, k and v share one conversion of their input, forward and backward."""
    block = _class(_source("gpt", "cpu:2", "tp=2"), "GPTBlock")
    assert block.count("sum_gradient(") == 2
    assert block.count("all_reduce(") == 2


def test_program_without_parallelism_talks_to_nobody() -> None:
    source = _source("gpt", "cpu:1", "")
    assert "MESH = {}" in source
    assert "self.axes" not in source


def _renamed_parameter(sharded: ShardedGraph, old: str, new: str) -> ShardedGraph:
    parameters = tuple(replace(p, name=new) if p.name == old else p for p in sharded.graph.parameters)
    layouts = {**sharded.parameters, new: sharded.parameters[old]}
    return replace(sharded, graph=replace(sharded.graph, parameters=parameters), parameters=layouts)


@pytest.mark.parametrize("name", ["layers.{print(1)}.x", 'layers.0."+x', "layers.0.{index}", "layers.0\n.x"])
def test_a_hostile_parameter_name_stays_a_string(name: str) -> None:
    sharded = found("gpt", "cpu:2", "tp=2").best.realized.sharded
    source = program_source(_renamed_parameter(sharded, "norm.bias", name), "title")
    assert name in [parameter.name for parameter in loaded(source)["PARAMETERS"]]


def test_a_hostile_title_stays_a_comment() -> None:
    sharded = found("gpt", "cpu:2", "tp=2").best.realized.sharded
    source = program_source(sharded, 'x"""\nprint(1)\n"""{axes}\\')
    assert ast.get_docstring(ast.parse(source)) is not None
    assert isinstance(loaded(source)["Root"], type)


def test_repeated_blocks_are_one_entry_of_the_tables() -> None:
    source = _source("gpt", "cpu:2", "tp=2")
    assert source.count("attention.q.weight") == 2  # in the table, and where it is used
    assert '**{f"layers.{index}": GPTBlock for index in range(2)},' in source


def test_source_lines_of_the_user_precede_what_was_made_of_them() -> None:
    lines = _class(_source("gpt", "cpu:2", "tp=2"), "GPTBlock").splitlines()
    place = next(i for i, line in enumerate(lines) if "# gpt.py attended = F.scaled_dot_product" in line)
    assert lines[place + 1].strip().startswith("attended = F.scaled_dot_product_attention(")


def _segment(*operators: tuple[str, str, tuple[str, ...], str]) -> SegmentType:
    """Operators as (target, source, results, module)."""
    made = tuple(Operator(r[0], t, (), (), r, s, m) for t, s, r, m in operators)
    values = {name: Value(name, (), "float32", False) for o in made for name in o.results if name}
    return SegmentType("T", (), (), (), made, (), values)


def test_the_last_result_of_an_assignment_has_the_users_name() -> None:
    line = "m.py:7   h = F.silu(self.gate(x)) * y"
    segment = _segment(("aten.silu", line, ("silu_1",), ""), ("aten.mul", line, ("mul_1",), ""))
    assert user_names(segment) == {"mul_1": "h"}


def test_several_results_have_the_users_names() -> None:
    line = "m.py:7   q, k, v = x.split(w, dim=-1)"
    assert user_names(_segment(("aten.split", line, ("a", "b", "c"), ""))) == {"a": "q", "b": "k", "c": "v"}
    assert user_names(_segment(("aten.split", line, ("a", "b"), ""))) == {}


@pytest.mark.parametrize(
    "line",
    [
        "m.py:7   return self.out(x)",
        "m.py:7   x == y",
        "m.py:7   self.h = x",
        "m.py:7   x[0] = y",
        "m.py:7   x += y",
        "m.py:7   class = y",
        "",
    ],
)
def test_lines_that_assign_no_variable_name_nothing(line: str) -> None:
    assert user_names(_segment(("aten.mul", line, ("mul_1",), ""))) == {}


def test_a_long_call_has_one_argument_a_line() -> None:
    text = f"F.linear({'a' * 50}, g({'b' * 30}, 1), bias=h({'c' * 20}))"
    lines = layout_lines(statement("x", text, "[8]"), "")
    assert lines == [
        "x = F.linear(",
        f"    {'a' * 50},",
        f"    g({'b' * 30}, 1),",
        f"    bias=h({'c' * 20}),",
        ")  # [8]",
    ]
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(f"x = {text}"))


def test_what_is_no_call_stays_on_one_line() -> None:
    text = " + ".join(["x"] * CODE_WIDTH)
    assert statement("y", text, "") == [Line(f"y = {text}")]


def test_programs_define_their_blocks_as_classes_with_a_forward() -> None:
    program = loaded(_source("llama", "cpu:2", "cp=2"))
    assert isinstance(program["LlamaBlock"].forward, types.FunctionType)
    assert program["COMPUTE_DTYPE"] is torch.float32
