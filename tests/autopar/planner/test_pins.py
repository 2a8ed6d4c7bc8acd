"""Pins give the axes they name, and operators do on them what the names say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autopar.errors import PinError
from autopar.plan.schema import OperatorEntry, Plan, SegmentTypeEntry
from autopar.planner.kept_pins import broken_pins
from autopar.planner.mesh import candidate_meshes
from autopar.planner.pins import ROLES, parse_pins
from autopar.planner.search import microbatch_size
from autopar.shardings.placement import Placement, parse_layout
from tests.autopar.planner.planning_cases import MODELS, found, plan_of

PRODUCTS = ("aten.linear.default", "aten.mm.default")
LAYERED = [model for model in MODELS if model != "mlp"]


def _axes(plan: Plan) -> dict[str, tuple[int, str]]:
    return {axis.axis: (axis.size, axis.parameters) for axis in plan.mesh}


def _main_work(plan: Plan) -> Iterator[OperatorEntry]:
    """Products with a weight, and attention, of the blocks."""
    for segment in _blocks(plan):
        leaves = {f"%{value}" for value in segment.parameters}
        for operator in segment.operators:
            is_product = operator.call in PRODUCTS and operator.arguments[1] in leaves
            if is_product or "scaled_dot_product" in operator.call:
                yield operator


def _blocks(plan: Plan) -> list[SegmentTypeEntry]:
    return [segment for segment in plan.segments if not segment.name.startswith("Root")]


def _placement(plan: Plan, layout: str, axis: str) -> Placement:
    names = tuple(entry.axis for entry in plan.mesh)
    return parse_layout(layout, names)[names.index(axis)]


@pytest.mark.parametrize("model", LAYERED)
def test_tensor_parallelism_shards_the_weights_of_every_product(model: str) -> None:
    plan = plan_of(model, "cpu:2", "tp=2")
    assert _axes(plan) == {"tp": (2, "model")}
    for operator in _main_work(plan):
        if operator.call in PRODUCTS:
            assert _placement(plan, operator.operands[1], "tp").is_shard, operator.name
        else:
            assert operator.strategy in ("tp:h", "tp:s"), operator.name


@pytest.mark.parametrize(("pins", "kind"), [("dp_replicate=2", "replicate"), ("dp_shard=2", "shard")])
@pytest.mark.parametrize("model", MODELS)
def test_data_parallelism_shards_the_batch_of_all_main_work(model: str, pins: str, kind: str) -> None:
    plan = plan_of(model, "cpu:2", pins)
    axis = pins.partition("=")[0]
    assert _axes(plan) == {axis: (2, kind)}
    for operator in _main_work(plan):
        placement = _placement(plan, operator.layouts[0], axis)
        assert (placement.dim, placement.blocks) == (0, 1), operator.name
    assert all(entry.layout == "" for entry in plan.parameters)


@pytest.mark.parametrize("model", [model for model in LAYERED if model != "two-tower"])
def test_context_parallelism_shards_the_sequence_of_all_main_work(model: str) -> None:
    plan = plan_of(model, "cpu:4", "cp=2,dp_shard=2")
    assert {axis: size for axis, (size, _) in _axes(plan).items()} == {"dp_shard": 2, "cp": 2}
    for operator in _main_work(plan):
        query = _placement(plan, operator.operands[0], "cp")
        rank = 4 if "scaled_dot_product" in operator.call else 3
        expected = [(rank - 2, 1)] if rank == 4 else [(1, 1), (0, 4), (0, 8)]
        assert (query.dim, query.blocks) in expected, operator.name


def test_context_axis_shards_flattened_tokens_in_blocks_of_the_batch() -> None:
    """(8, 16) flattened to 128 tokens: the batch is S(0), the sequence is S(0) in 8 blocks."""
    plan = plan_of("gpt", "cpu:4", "cp=2,dp_shard=2")
    loss = next(o for s in plan.segments for o in s.operators if "cross_entropy" in o.call)
    assert loss.strategy == "dp_shard:n cp:nx8"
    assert loss.operands == ["dp_shard:S(0) cp:S(0)x8"] * 2
    assert not any("flatten" in conversion.tensor for conversion in plan.conversions)


@pytest.mark.parametrize("model", ["hf-gpt2", "two-tower"])
def test_fused_projections_are_sharded_by_head_in_three_blocks(model: str) -> None:
    """Each rank holds its heads of q, of k and of v; nothing is gathered between projection and attention."""
    plan = plan_of(model, "cpu:2", "tp=2")
    fused = {"hf-gpt2": "mm.default", "two-tower": "linear.default"}[model]
    for segment in _blocks(plan):
        product = next(o for o in segment.operators if o.call == f"aten.{fused}")
        assert product.strategy.endswith("x3"), segment.name
        weight = segment.parameters[str(product.arguments[1]).removeprefix("%")]
        rest = {entry.name: entry.layout for entry in plan.parameters}
        assert all(layout.endswith("x3") for name, layout in rest.items() if name.endswith(weight))
    names = {segment.name for segment in _blocks(plan)}
    inside = [c for c in plan.conversions if c.tensor.partition(".")[0] in names]
    kinds = {step.partition(", ")[2] for conversion in inside for step in conversion.steps}
    assert kinds == {"nothing / all_reduce", "all_reduce / nothing"}


def test_three_roles_give_three_axes() -> None:
    plan = plan_of("gpt", "cpu:8", "dp_replicate=2,dp_shard=2,tp=2")
    assert _axes(plan) == {"dp_replicate": (2, "replicate"), "dp_shard": (2, "shard"), "tp": (2, "model")}


def test_what_is_not_pinned_is_searched() -> None:
    plan = plan_of("llama", "cpu:4", "tp=2")
    axes = _axes(plan)
    assert axes["tp"] == (2, "model")
    assert len(axes) == 2


@pytest.mark.parametrize(("zero", "kinds"), [("0", {"replicate"}), ("3", {"shard"})])
def test_zero_says_how_parameters_rest_over_data_axes(zero: str, kinds: set[str]) -> None:
    answer = found("gpt", "cpu:4", f"zero={zero}")
    for tried in (answer.best, *answer.runner_ups):
        assert {axis.kind for axis in tried.realized.sharded.axes} - {"model"} <= kinds


def test_meshes_multiply_to_the_cluster() -> None:
    for devices in (1, 2, 6, 8, 12):
        meshes = list(candidate_meshes(devices, parse_pins("")))
        assert len(set(meshes)) == len(meshes)
        for mesh in meshes:
            product = 1
            for axis in mesh:
                product *= axis.size
            assert product == devices


@pytest.mark.parametrize("text", ["", "tp=2", "dp_replicate=2,tp=4,zero=3", "dp_shard=2,cp=2"])
def test_pins_round_trip_as_text(text: str) -> None:
    assert str(parse_pins(text)) == text
    assert parse_pins(str(parse_pins(text))) == parse_pins(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp", "has no value"),
        ("tp=0", "at least 1"),
        ("tp=two", "whole number"),
        ("zero=4", "legal are 0"),
        ("tpp=2", "Did you mean 'tp'"),
        ("microbatch=0", "whole number"),
        ("recompute=all", "legal are none, selective, full"),
        ("tp=\u00b2", "whole number"),
        ("tp=2,tp=4", "tp is given twice"),
        ("TP=2", "Did you mean 'tp'"),
        ("pp=1,schedule=1f1b", "needs a pipeline, and pp=1 rules it out"),
        ("pp=1,chunks=2", "needs a pipeline, and pp=1 rules it out"),
        ("pp=2,schedule=gpipe,chunks=2", "takes one chunk a rank"),
    ],
)
def test_a_wrong_pin_is_named(text: str, message: str) -> None:
    with pytest.raises(PinError, match=message):
        parse_pins(text)


REFUSED = {
    "tp=3": "3 devices .* does not divide the cluster's 4",
    "dp_replicate=2,dp_shard=1,cp=1,tp=1,pp=1": "2 of 4 devices",
    "pp=2,tp=2,zero=3": "zero=3 shards over the ranks of dp_shard and cp",
    "dp_shard=2,zero=0": "dp_shard=2 contradict",
    "pp=4,schedule=interleaved": "4 segments",
}


@pytest.mark.parametrize(("pins", "message"), REFUSED.items())
def test_pins_that_do_not_suit_the_cluster_are_refused(pins: str, message: str) -> None:
    with pytest.raises(PinError, match=message):
        found("gpt", "cpu:4", pins)


def test_a_batch_that_does_not_divide_names_the_legal_sizes() -> None:
    with pytest.raises(PinError, match=r"batch of 6 .* over 4 ranks .* over 1, 2, 3 or 6\."):
        found("gpt", "cpu:4", "dp_shard=4", batch=6)


UNCUT = {
    "pp=2": r"cut into 2 microbatches: .*text @ image\.t\(\).* Leave out pp, pin microbatch=8",
    "schedule=gpipe": r"Leave out schedule, pin microbatch=8",
    "microbatch=2": r"microbatches: .*text @ image\.t\(\).* Leave out microbatch",
    "pp=2,microbatch=2": r"text @ image\.t\(\).* Leave out pp and microbatch, or",
}


@pytest.mark.parametrize(("pins", "message"), UNCUT.items())
def test_a_batch_that_cannot_be_cut_names_the_line_that_mixes_it(pins: str, message: str) -> None:
    with pytest.raises(PinError, match=message):
        found("two-tower", "cpu:2", pins)


def test_context_ranks_without_a_sequence_are_refused() -> None:
    with pytest.raises(PinError, match="cp=2 cuts the sequence, but MLP has none"):
        found("mlp", "cpu:2", "cp=2")


def test_tensor_ranks_that_divide_no_weight_are_refused() -> None:
    with pytest.raises(
        PinError, match=r"tp=3 cuts the weights of matrix products, but .* dims of 32, 64, 128"
    ):
        found("gpt", "cpu:3", "tp=3")


HONOURED = (
    "schedule=1f1b",
    "schedule=interleaved",
    "chunks=2",
    "zero=1",
    "zero=3",
    "dp_shard=1,zero=3",
    "dp_replicate=2,zero=3",
    "dp_replicate=1,dp_shard=1,cp=1,pp=1",
    "cp=2,microbatch=2",
    "pp=1,tp=1,microbatch=8",
    "pp=2,tp=1,microbatch=8",
    "recompute=full,pp=2",
    "pp=2,zero=2",
    "tp=1,recompute=selective",
)


@pytest.mark.parametrize("pins", HONOURED)
def test_every_plan_found_does_what_is_pinned(pins: str) -> None:
    answer = found("gpt", "cpu:4", pins)
    for tried in (answer.best, *answer.runner_ups):
        sharded = tried.realized.sharded
        assert broken_pins(parse_pins(pins), sharded, microbatch_size(tried.realized)) == ()
    sharded = answer.best.realized.sharded
    sizes = {"pp": sharded.stage_ranks, **{axis.name: axis.size for axis in sharded.axes}}
    for role, size in (item.split("=") for item in pins.split(",") if item.split("=")[0] in (*ROLES, "pp")):
        assert sizes.get(role, 1) == int(size)
    if "schedule" in pins or "chunks" in pins:
        assert sharded.stage_ranks > 1


def test_devices_that_divide_nothing_become_stages() -> None:
    """Neither 8 sequences nor 16 tokens nor weights of 32, 64 and 128 divide by 3, but there are 4 segments."""
    sharded = found("gpt", "cpu:6").best.realized.sharded
    assert sharded.stage_ranks == 3
