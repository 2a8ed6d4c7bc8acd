"""Every conversion equals its meaning on the unsharded tensor, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autopar.runtime.axis import Axis
from autopar.runtime.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    shard,
    share_gradient,
    sum_gradient,
)
from tests.autopar.runtime.meshes import mesh_axes, piece, total

AXES = ((4,), 0), ((2, 2), 0), ((2, 2), 1), ((1, 4), 0)
"""Meshes of four ranks, and the axis of each to convert over."""

CONVERSIONS = {
    "sum_gradient": ("R|R", "R|P", lambda x, axis, at: sum_gradient(x, axis)),
    "all_reduce": ("P|R", "R|R", lambda x, axis, at: all_reduce(x, axis)),
    "all_reduce_both": ("P|R", "R|P", lambda x, axis, at: all_reduce(x, axis, backward="all_reduce")),
    "all_gather": ("S", "R|P", lambda x, axis, at: all_gather(x, axis, *at[0])),
    "all_gather_slice": ("S", "R|R", lambda x, axis, at: all_gather(x, axis, *at[0], backward="slice")),
    "reduce_scatter": ("P|R", "S", lambda x, axis, at: reduce_scatter(x, axis, *at[1])),
    "shard": ("R|R", "S", lambda x, axis, at: shard(x, axis, *at[1])),
    "shard_pad": ("R|P", "S", lambda x, axis, at: shard(x, axis, *at[1], backward="pad")),
    "share_gradient": ("R|P", "R|R", lambda x, axis, at: share_gradient(x, axis)),
    "all_to_all": ("S", "S", lambda x, axis, at: all_to_all(x, axis, at[0][0], at[1][0], at[0][1], at[1][1])),
}


def axis_of_mesh(shape: tuple[int, ...], position: int) -> Axis:
    return mesh_axes(shape)[position]


def is_close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


def convert(
    name: str, mesh: tuple[int, ...], position: int, shape: tuple[int, ...], at: tuple, seed: int
) -> tuple:
    """On one rank: whether the conversion's value and gradient are what its states say."""
    axis = axis_of_mesh(mesh, position)
    from_state, to_state, function = CONVERSIONS[name]
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(axis.size, *shape, dtype=torch.float64, generator=random)
    gradients = torch.randn(axis.size, *shape, dtype=torch.float64, generator=random)
    value = values.sum(0) if from_state == "P|R" else values[0]
    gradient = gradients.sum(0) if to_state == "R|P" else gradients[0]
    local = {
        "S": partial(piece, value, (axis,), *at[0]),
        "R|R": lambda: value,
        "R|P": lambda: value,
        "P|R": lambda: values[axis.index],
    }
    expected = {"S": partial(piece, value, (axis,), *at[1])}.get(to_state, lambda: value)()
    sent = {
        "S": partial(piece, gradient, (axis,), *at[1]),
        "R|R": lambda: gradient,
        "R|P": lambda: gradients[axis.index],
    }
    wanted = {"S": partial(piece, gradient, (axis,), *at[0])}.get(from_state, lambda: gradient)()

    x = local[from_state]().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()  # not contiguous
    y = function(x, axis, at)
    y.backward(sent[to_state]())
    gradient_of_x = total(x.grad, (axis,)) if from_state == "R|P" else x.grad
    return is_close(y.detach(), expected), is_close(gradient_of_x, wanted)


@st.composite
def places(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[tuple[int, int], tuple[int, int]]]:
    """A shape, and two (dim, blocks) at which it divides by four shards."""
    ndim = draw(st.integers(2, 4))
    from_dim, to_dim = draw(st.permutations(range(ndim)))[:2]
    blocks = {from_dim: draw(st.integers(1, 3)), to_dim: draw(st.integers(1, 3))}
    pieces = [draw(st.integers(1, 3)) for _ in range(ndim)]
    shape = tuple(count * blocks[dim] * 4 if dim in blocks else count for dim, count in enumerate(pieces))
    to_dim_said = draw(st.sampled_from([to_dim, to_dim - ndim]))
    return shape, ((from_dim, blocks[from_dim]), (to_dim_said, blocks[to_dim]))


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversion_means_what_its_states_say(pool, name):
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(where=st.sampled_from(AXES), place=places(), seed=st.integers(0, 99))
    def check(where, place, seed):
        answers = pool.run(convert, name, *where, *place, seed)
        assert answers == [(True, True)] * 4

    check()


def convert_kinds(dtype: torch.dtype) -> bool:
    """Conversions of a value without a gradient: gather(shard), exchange and exchange back."""
    axis = axis_of_mesh((4,), 0)
    value = torch.arange(8 * 12).reshape(8, 12).remainder(7).to(dtype)
    mine = shard(value, axis, 1, 3)
    moved = all_to_all(mine, axis, 1, 0, 3, 1)
    gathered = all_gather(mine, axis, 1, 3)
    back = all_gather(moved, axis, 0)
    return all(torch.equal(x, value) and x.dtype == dtype for x in (gathered, back))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8, torch.bfloat16])
def test_values_without_gradient_are_converted(pool, dtype):
    assert pool.run(convert_kinds, dtype) == [True] * 4


def nest(seed: int) -> bool:
    """A dim sharded over two axes, outermost first, gathers innermost first."""
    outer, inner = axis_of_mesh((2, 2), 0), axis_of_mesh((2, 2), 1)
    value = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    mine = shard(shard(value, outer, 0), inner, 0)
    index = outer.index * 2 + inner.index
    return torch.equal(mine, value.chunk(4)[index]) and torch.equal(
        all_gather(all_gather(mine, inner, 0), outer, 0), value
    )


def test_nested_axes_shard_outermost_first(pool):
    assert pool.run(nest, 0) == [True] * 4


def chain(x: Tensor, weight: Tensor, axis: Axis) -> Tensor:
    """Every conversion once, as in a Megatron layer with sequence sharding."""
    gathered = all_gather(x, axis, 1)
    hidden = torch.nn.functional.linear(gathered, shard(weight, axis, 0, 2)).tanh()
    y = reduce_scatter(torch.nn.functional.linear(hidden, hidden.mean((0, 1)).expand(8, -1)), axis, 1)
    moved = all_to_all(all_to_all(y, axis, 1, 2), axis, 2, 1)
    whole = all_gather(moved, axis, 1, backward="slice")
    return all_reduce(sum_gradient(whole, axis).sum() * (1 + axis.index), axis, backward="all_reduce")


def compare_compiled(backend: str) -> list[bool]:
    axis = axis_of_mesh((2, 2), 1)
    torch.manual_seed(axis.index)
    x, weight = torch.randn(2, 4, 6, requires_grad=True), torch.randn(16, 6, requires_grad=True)
    results = []
    for function in (chain, torch.compile(chain, fullgraph=True, backend=backend, dynamic=False)):
        loss = function(x, weight, axis)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, weight))))
    return [
        torch.allclose(eager, compiled, rtol=1e-4, atol=1e-5)
        for eager, compiled in zip(*results, strict=True)
    ]


def test_conversions_trace_into_one_graph(pool):
    assert pool.run(compare_compiled, "aot_eager") == [[True] * 3] * 4


@pytest.mark.slow
def test_conversions_compile_with_inductor(pool):
    assert pool.run(compare_compiled, "inductor", timeout_s=300) == [[True] * 3] * 4


def test_an_axis_of_one_rank_does_nothing():
    alone = Axis("tp", 1, 0, "")
    x = torch.ones(3, 5)
    for _, _, function in CONVERSIONS.values():
        assert function(x, alone, ((0, 1), (1, 1))) is x


def test_uneven_dims_are_refused():
    axis = Axis("tp", 2, 0, "none")
    with pytest.raises(
        ValueError, match="dim 1 of shape \\(4, 6\\) does not divide into 2 blocks × 2 shards"
    ):
        shard(torch.ones(4, 6), axis, 1, 2)
    with pytest.raises(ValueError, match="two different dims"):
        all_to_all(torch.ones(4, 6), axis, 1, -1)
