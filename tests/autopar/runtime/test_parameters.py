"""Parameters at rest: their records, stored orders, identity, and trees made from names."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor

from autopar.errors import ModelError, PlanMismatchError
from autopar.runtime import (
    Axis,
    Parameter,
    bind,
    distribute,
    full_state_dict,
    init_mesh,
    initialize,
    keep_identity,
    local,
    materialize,
    parameter_tree,
    seed_ranks,
)
from autopar.runtime.axis import nested_index
from autopar.runtime.blocks import local_shard
from autopar.runtime.parameter import stored_order, to_plain_order, to_stored_order
from tests.autopar.runtime.tiny import LAYERS, Block, Tiny, batch, my_part, parallel, parameters_of


def test_a_layout_says_which_axis_shards_which_dim():
    parameter = Parameter("w", (12, 8), torch.float32, "ep:R tp:S(0)x3 cp:R|P sp:S(1)")
    assert [(s.axis, s.dim, s.blocks) for s in parameter.shardings] == [("tp", 0, 3), ("sp", 1, 1)]
    assert parameter.sharding_of("ep") is None


@pytest.mark.parametrize("layout", ["tp:S(x)", "tp", "tp:S(0);import os", "tp:P"])
def test_other_layouts_are_refused(layout):
    with pytest.raises(ValueError, match="is not axis:S"):
        Parameter("w", (4,), torch.float32, layout)


def test_a_layout_that_shards_a_missing_dim_is_refused():
    with pytest.raises(ValueError, match="parameter w has 1 dims"):
        Parameter("w", (4,), torch.float32, "tp:S(1)")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2]))
def test_stored_shards_are_the_blocked_shards(outer, inner, piece, blocks, same):
    """Two axes on one dim, the inner one in blocks of what the outer one left."""
    sizes = {"outer": outer, "inner": inner}
    length = outer * inner * piece * blocks
    levels = (1, blocks * outer) if same == 1 else (blocks, blocks)
    layout = f"outer:S(0)x{levels[0]} inner:S(0)x{levels[1]}"
    parameter = Parameter("w", (length,), torch.float32, layout)
    orders = stored_order(parameter, sizes)
    plain = torch.arange(length)
    stored = to_stored_order(plain, orders)
    assert torch.equal(to_plain_order(stored, orders), plain)
    for i in range(outer):
        for j in range(inner):
            mine = local_shard(local_shard(plain, 0, outer, levels[0], i), 0, inner, blocks, j)
            assert torch.equal(stored.chunk(outer)[i].chunk(inner)[j], mine)


def test_plain_shards_are_stored_as_they_are():
    assert stored_order(Parameter("w", (8, 4), torch.float32, "a:S(0) b:S(0)"), {"a": 2, "b": 2}) == ()


def test_a_model_ready_to_shard_behaves_as_before():
    torch.manual_seed(0)
    plain = Tiny()
    model = copy.deepcopy(plain)
    keep_identity(model)
    objects = list(model.parameters())
    tokens, targets = batch(0)
    assert torch.equal(model(tokens, targets), plain(tokens, targets))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(isinstance(p, nn.Parameter) for p in objects)
    assert model.head.weight is model.embed.weight
    model.load_state_dict(plain.state_dict())
    model.double()
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert all(type(value) is torch.Tensor for value in model.state_dict().values())

    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embed.weight
    assert twin.head.weight is not model.head.weight
    with torch.no_grad():
        twin.shift.zero_()
    assert model.shift.abs().sum() > 0
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.shift, model.shift)


def test_optimizers_step_parameters_that_are_ready_to_shard():
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    model = copy.deepcopy(plain)
    keep_identity(model)
    for module in (plain, model):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        module(torch.ones(1, 3)).sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
    assert torch.equal(plain.weight, model.weight)


def test_a_module_that_is_not_the_programs_is_refused():
    mesh = init_mesh({"tp": 1}, "cpu")
    table = [Parameter("weight", (2, 3), torch.float32), Parameter("bias", (2,), torch.float32)]
    with pytest.raises(
        PlanMismatchError, match=r"parameter weight has shape \(2, 4\), the program is made for"
    ):
        distribute(nn.Linear(4, 2), table, mesh, ("tp",))
    with pytest.raises(PlanMismatchError, match="has a parameter bias"):
        distribute(nn.Linear(3, 2), table[:1], mesh, ("tp",))


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(PlanMismatchError, match=r"laid out for 8 processes \(dp 2 × tp 4\), and 1 run"):
        init_mesh({"dp": 2, "tp": 4}, "cpu")


def refuse_uneven() -> str:
    mesh = init_mesh({"tp": 4}, "cpu")
    table = [Parameter("weight", (6, 4), torch.float32, "tp:S(0)"), Parameter("bias", (6,), torch.float32)]
    try:
        distribute(nn.Linear(4, 6), table, mesh, ("tp",))
    except ValueError as error:
        return str(error)
    return ""


def test_dims_that_do_not_divide_are_refused(pool):
    assert pool.run(refuse_uneven) == ["dim 0 of weight (6, 4) does not divide into 4 shards"] * 4


def from_names(sizes: dict) -> tuple:
    """A tree on the meta device, sharded, then made real, trains."""
    table = parameters_of(Tiny())
    classes = {"": nn.Module} | {f"layers.{i}": nn.Module for i in range(LAYERS)}
    model = parameter_tree(table, classes, "meta")
    mesh, _ = parallel(model, sizes)
    is_meta = all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    initialize(model, seed=3)
    model.scale.fill_(0.5)
    tokens, targets = batch(0)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = model(my_part(tokens, mesh.axes), my_part(targets, mesh.axes))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    names = sorted(full_state_dict(model))
    return is_meta, names, losses, [p.to_local().isnan().any().item() for p in model.parameters()]


def test_tied_weights_stay_one_tensor_when_they_get_memory():
    table = [
        Parameter("a.weight", (2, 3), torch.float32),
        Parameter("b.weight", (2, 3), torch.float32, alias_of="a.weight"),
    ]
    tree = parameter_tree(table, {})
    keep_identity(tree)
    materialize(tree, "cpu")
    assert tree.a.weight is tree.b.weight
    assert tree.a.weight.device.type == "cpu"


@pytest.mark.parametrize("sizes", [{"dp_shard": 2, "tp": 2}, {"dp_replicate": 4}], ids=str)
def test_a_tree_made_from_names_trains(pool, sizes):
    answers = pool.run(from_names, sizes)
    assert answers[0][:3] == answers[1][:3] == answers[3][:3]
    is_meta, names, losses, nans = answers[0]
    assert is_meta
    assert names == sorted(Tiny().state_dict())
    assert losses[2] < losses[0]
    assert not any(nans)


def test_a_tree_has_the_modules_of_the_names():
    table = [
        Parameter("blocks.1.w", (2,), torch.float32),
        Parameter("blocks.0.w", (2,), torch.float32),
        Parameter("odd.3.w", (2,), torch.bfloat16, requires_grad=False),
        Parameter("blocks.0.mask", (1,), torch.bool, is_buffer=True, is_persistent=False),
        Parameter("head.w", (2,), torch.float32, alias_of="blocks.0.w"),
    ]
    root = parameter_tree(table, {"": nn.Identity, "blocks.0": Block, "empty": nn.Tanh}, "cpu")
    assert type(root) is nn.Identity
    assert type(root.blocks) is nn.ModuleList
    assert type(root.blocks[0]) is Block
    assert type(root.odd) is nn.Module
    assert type(root.empty) is nn.Tanh
    assert root.head.w is root.blocks[0].w
    assert not root.get_submodule("odd.3").w.requires_grad
    assert "blocks.0.mask" not in root.state_dict()
    assert root.blocks[0].mask.dtype is torch.bool


def test_local_is_the_tensor_itself_where_it_is_whole():
    parameter = nn.Parameter(torch.ones(2))
    assert local(parameter) is parameter


def local_gradients() -> list[bool]:
    mesh = init_mesh({"tp": 4}, "cpu")
    model = nn.Linear(3, 8)
    distribute(
        model,
        [Parameter("weight", (8, 3), torch.float32, "tp:S(0)"), Parameter("bias", (8,), torch.float32)],
        mesh,
        ("tp",),
    )
    (local(model.weight) * 2).sum().backward()
    (local(model.bias) * 3).sum().backward()
    is_sharded = model.weight.grad.placements == model.weight.placements
    whole = model.weight.grad.full_tensor(), model.bias.grad.full_tensor()
    return [
        isinstance(model.bias, DTensor),
        is_sharded,
        torch.equal(whole[0], torch.full((8, 3), 2.0)),
        torch.equal(whole[1], torch.full((8,), 3.0)),
    ]


def test_gradients_of_local_shards_have_the_parameters_layout(pool):
    assert pool.run(local_gradients) == [[True] * 4] * 4


def test_bound_forwards_leave_the_module_what_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    axes = {"tp": Axis("tp", 1, 0, "")}
    bind(model, {"0": lambda self, x: x + self.axes["tp"].size}, axes)
    bind(model, {"0": lambda self, x: x + 2 * self.axes["tp"].size}, axes)
    assert torch.equal(model[0](torch.zeros(2)), torch.full((2,), 2.0))
    assert calls == ["hook"]
    assert type(model[0]) is nn.Linear
    model[1].axes = 3
    with pytest.raises(ModelError, match=r"module '1' \(Linear\) has an attribute 'axes'"):
        bind(model, {"1": lambda self, x: x}, axes)


def test_equal_blocks_are_compiled_once():
    from torch._dynamo.testing import CompileCounter

    torch.manual_seed(0)
    model = Tiny()
    counter = CompileCounter()
    axes = {"tp": Axis("tp", 1, 0, "")}
    parallel(model, {})
    from tests.autopar.runtime import tiny

    compiled = torch.compile(tiny.block_forward, backend=counter)
    bind(model, {f"layers.{i}": compiled for i in range(LAYERS)}, axes)
    model(*batch(0)).backward()
    assert counter.frame_count == 1


def test_ranks_draw_the_same_where_results_are_replicated():
    def draw(dp: int, tp: int) -> torch.Tensor:
        seed_ranks(7, {"dp": Axis("dp", 2, dp, ""), "tp": Axis("tp", 2, tp, "")}, ["dp"])
        return torch.rand(4)

    assert torch.equal(draw(1, 0), draw(1, 1))
    assert not torch.equal(draw(0, 0), draw(1, 0))


def test_nested_axes_count_outermost_first():
    assert nested_index([Axis("a", 2, 1, ""), Axis("b", 3, 2, "")]) == 5
    assert nested_index([]) == 0
