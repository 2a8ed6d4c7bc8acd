"""A plan is a text that comes back as the same plan, the same layouts and the same program."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from autopar.capture.graph import Ref, Symbol, Value
from autopar.clusters import cluster_named
from autopar.codegen.program import program_source
from autopar.errors import PlanError
from autopar.plan.files import format_plan, parse_plan, read_plan, write_plan
from autopar.plan.graphs import graph_of
from autopar.plan.schema import OperatorEntry, Plan
from autopar.plan.text import read_argument, read_tensor, write_argument, write_tensor
from autopar.planner.restore import restore
from tests.autopar.planner.planning_cases import MODELS, found, plan_of

CASES = [(model, "cpu:4", "tp=2,dp_shard=2") for model in MODELS] + [
    ("gpt", "cpu:2", ""),
    ("llama", "cpu:4", "cp=2,dp_replicate=2"),
    ("gpt", "cpu:1", ""),
]
GPT = ("gpt", "cpu:2", "tp=2")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_plan_comes_back_from_its_text(case: tuple[str, str, str]) -> None:
    plan = plan_of(*case)
    text = format_plan(plan)
    assert parse_plan(text) == plan
    assert format_plan(parse_plan(text)) == text


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_restored_plan_is_the_plan(case: tuple[str, str, str]) -> None:
    """Every figure that follows from the decisions comes out the same, and so does the program."""
    plan = plan_of(*case)
    updated, realized = restore(parse_plan(format_plan(plan)), cluster_named(case[1]))
    assert updated == plan
    best = found(*case).best.realized
    assert realized.objective_s == best.objective_s
    assert realized.memory == best.memory
    assert program_source(realized.sharded, "title") == program_source(best.sharded, "title")


def test_text_is_readable() -> None:
    text = format_plan(plan_of(*GPT))
    keys = list(json.loads(text))
    assert keys[:4] == ["format", "autopar", "model", "cluster"]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 400
    assert sum(len(line) <= 120 for line in lines) > 0.9 * len(lines)


def test_files_are_whole_or_not_there(tmp_path: Any) -> None:
    plan, path = plan_of(*GPT), tmp_path / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(PlanError, match="cannot be written"):
        write_plan(plan, tmp_path / "nowhere" / "plan.json")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "absent.json")


def _edited(plan: Plan, type_name: str, operator: str, **changes: Any) -> Plan:
    """The plan with some fields of one operator written over, as by hand."""

    def entry(each: OperatorEntry) -> OperatorEntry:
        return msgspec.structs.replace(each, **changes) if each.name == operator else each

    segments = [
        msgspec.structs.replace(segment, operators=[entry(each) for each in segment.operators])
        if segment.name == type_name
        else segment
        for segment in plan.segments
    ]
    return msgspec.structs.replace(plan, segments=segments)


def _operator(plan: Plan, type_name: str, name: str) -> OperatorEntry:
    segment = next(each for each in plan.segments if each.name == type_name)
    return next(each for each in segment.operators if each.name == name)


def test_a_strategy_edited_by_hand_is_taken_and_priced_again() -> None:
    """Row parallel instead of column parallel: other layouts, another conversion, a dearer step."""
    plan = plan_of(*GPT)
    assert _operator(plan, "GPTBlock", "up_product").strategy == "tp:o"
    edited = _edited(plan, "GPTBlock", "up_product", strategy="tp:i")
    updated, realized = restore(edited, cluster_named("cpu:2"))
    operator = _operator(updated, "GPTBlock", "up_product")
    assert operator.strategy == "tp:i"
    assert operator.operands == ["tp:S(2)", "tp:S(1)"]
    assert operator.layouts == ["tp:P"]
    assert updated.predicted.step_time_s > plan.predicted.step_time_s
    assert any(c.tensor == "GPTBlock.up_product" and c.source == "tp:P" for c in updated.conversions)
    assert "up_product" in program_source(realized.sharded, "title")
    assert restore(updated, cluster_named("cpu:2"))[0] == updated


def test_an_axis_that_a_strategy_does_not_name_shards_nothing() -> None:
    edited = _edited(plan_of(*GPT), "GPTBlock", "up_product", strategy="")
    updated, _ = restore(edited, cluster_named("cpu:2"))
    assert _operator(updated, "GPTBlock", "up_product").operands == ["", ""]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("tp:banana", r"GPTBlock.up_product \(aten.linear.default\) cannot do 'banana' on axis tp.* 'o'"),
        ("dp:o", r"GPTBlock.up_product: strategy 'dp:o' names the axis 'dp'; the mesh has tp"),
        ("o", r"GPTBlock.up_product: strategy 'o' names the axis 'o'"),
        ("tp:ox3", r"cannot do 'o x3' on axis tp"),
    ],
)
def test_an_impossible_strategy_names_the_operator_and_the_reason(strategy: str, message: str) -> None:
    edited = _edited(plan_of(*GPT), "GPTBlock", "up_product", strategy=strategy)
    with pytest.raises(PlanError, match=message):
        restore(edited, cluster_named("cpu:2"))


def test_strategies_that_do_not_fit_together_name_the_tensor() -> None:
    """The bias can pass a partial sum on, but what it is given is none."""
    plan = plan_of(*GPT)
    edited = _edited(plan, "GPTBlock", "add_1", strategy="tp:sum")
    with pytest.raises(PlanError, match=r"cannot get from .* to tp:P. Choose strategies that agree"):
        restore(edited, cluster_named("cpu:2"))


def test_a_dim_that_does_not_divide_is_named() -> None:
    plan = plan_of("mlp:layers=1,hidden=8,classes=3", "cpu:2", "dp_shard=2")
    edited = _edited(plan, "Root0", "head_product", strategy="dp_shard:o")
    with pytest.raises(
        PlanError, match=r"head_product .* cannot shard o: .* do not divide evenly over dp_shard=2"
    ):
        restore(edited, cluster_named("cpu:2"))


def _changed(path: list[str | int], value: Any) -> Plan:
    """The plan of ``GPT`` with one entry of its JSON changed; None removes it."""
    data = json.loads(format_plan(plan_of(*GPT)))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return parse_plan(json.dumps(data))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "autopar-plan/0", "has the format 'autopar-plan/0'; this version reads"),
        (["mesh", 0, "size"], "two", r"is not a plan: Expected `int`, got `str` - at `\$.mesh\[0\].size`"),
        (["schedule"], None, "missing required field `schedule`"),
        (["surprise"], 1, "unknown field `surprise`"),
        (["mesh", 0, "size"], 4, "has 4 ranks, its cluster 2 devices"),
        (["mesh", 0, "parameters"], "spread", "parameters of replicate, shard, model"),
        (["segments", 1, "boundaries", "x"], "tp:S(7)", "cannot be laid out as tp:S"),
        (["segments", 1, "boundaries", "x"], "tp:Q", "'Q' is not a placement"),
        (["segments", 1, "boundaries", "x"], None, "GPTBlock has no layout for its input 'x'"),
        (
            ["segments", 1, "operators", 0, "arguments", 0],
            "%nobody",
            "reads 'nobody', which nothing before it",
        ),
        (["segments", 1, "operators", 0, "arguments", 0], "x", "is no argument; write %value"),
        (["segments", 1, "values", "x"], "float32", "is no tensor; write dtype"),
        (["segments", 1, "operators", 0, "results"], [None], "reads .norm_1., which nothing before it makes"),
        (["stages", 0, "segments", 1, "type"], "Other", "calls the segment 'Other'"),
        (["stages", 0, "segments", 1, "arguments"], [], "passes the wrong number of values"),
        (["outputs", 0], "nothing", "output 'nothing' is made by nothing"),
        (["parameters", 2, "layout"], "tp:S(0)", "the same weight of repeated blocks rests alike"),
    ],
)
def test_a_damaged_plan_is_refused_by_name(path: list[str | int], value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        restore(_changed(path, value), cluster_named("cpu:2"))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"plan"', "null", "{" * 100_000])
def test_what_is_no_json_or_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        parse_plan(text)


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_of_a_plan_is_the_graph_it_was_made_for(model: str) -> None:
    plan = plan_of(model, "cpu:4", "tp=2,dp_shard=2")
    graph, planned = graph_of(plan), found(model, "cpu:4", "tp=2,dp_shard=2").best.realized.sharded.graph
    assert graph.types == planned.types
    assert graph.calls == planned.calls
    assert graph.inputs == planned.inputs
    assert graph.parameters == planned.parameters
    assert graph.values == planned.values


@pytest.mark.parametrize(
    "argument",
    [
        Ref("x"),
        Symbol("dtype", "float32"),
        Symbol("device", "default"),
        Symbol("training", "True"),
        (1, Ref("y"), (2.5, None)),
        "tanh",
        "%x",
        "dtype:float32",
        "it's",
        "",
        True,
        None,
        -1,
        1e-5,
        float("inf"),
        float("-inf"),
    ],
    ids=str,
)
def test_arguments_round_trip_through_json(argument: Any) -> None:
    written = json.loads(json.dumps(write_argument(argument)))
    assert read_argument("op", written) == argument
    assert type(read_argument("op", written)) is type(argument)


def test_not_a_number_round_trips() -> None:
    read = read_argument("op", write_argument(float("nan")))
    assert read != read


@pytest.mark.parametrize("value", [Value("x", (), "int64", False), Value("x", (8, 1, 3), "float32", True)])
def test_tensors_round_trip_as_text(value: Value) -> None:
    assert read_tensor("x", write_tensor(value)) == value
