"""Every conversion on simulated ranks: the tensor stays the same tensor, and so does its gradient."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autopar import runtime
from autopar.codegen.conversions import conversion_call
from autopar.shardings.conversion import ConversionTable, Step, conversion_table
from autopar.shardings.placement import (
    PARTIAL,
    REPLICATE,
    REPLICATE_PARTIAL,
    Layout,
    Placement,
    format_layout,
    is_legal,
    local_blocks,
    local_shape,
    parse_layout,
    parse_placement,
    shard,
)
from tests.autopar.shardings.simulated import SimulatedMesh, gradient_layout, joined, spread

NAMES = ("a", "b")
MESHES = [(2,), (4,), (2, 2), (2, 3)]
SHAPE = (24, 12)
SHARDS = (shard(0), shard(1), shard(0, 2), shard(0, 6))
PATHS = 150
"""Paths tried on each mesh, of up to 1,400."""


def _price(step: Step, before: int, after: int) -> float:
    """Seconds of a step where a byte takes 1 ns on axis a and 3 ns on axis b, and every collective 1 µs."""
    moved = {"nothing": 0, "slice": 0, "pad": 0, "share": 0, "all_reduce": 2 * max(before, after)}
    spent = [moved.get(word, max(before, after)) for word in (step.forward, step.backward)]
    is_collective = [
        word not in ("nothing", "slice", "pad", "share") for word in (step.forward, step.backward)
    ]
    return 1e-8 + sum(1e-9 * (1 + 2 * step.axis) * each for each in spent) + 1e-6 * sum(is_collective)


def _table(sizes: tuple[int, ...], *, requires_grad: bool = True) -> ConversionTable:
    return conversion_table(SHAPE, 8, (SHARDS,) * len(sizes), sizes, _price, requires_grad=requires_grad)


def _convert(piece: Tensor, steps: Sequence[Step], axes: dict[str, Any]) -> Tensor:
    """The calls that a generated program makes."""
    x = piece
    functions = {name: getattr(runtime, name) for name in runtime.__all__}
    for step in steps:
        written = conversion_call(step, "x", NAMES[step.axis])
        if written is not None:
            x = eval(written[1], {**functions, **axes, "x": x})
    return x


def _check(
    mesh: SimulatedMesh, source: Layout, target: Layout, steps: Sequence[Step], *, requires_grad: bool = True
) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    gradient = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    pieces = [piece.requires_grad_(requires_grad) for piece in spread(whole, source, mesh.sizes, generator)]
    incoming = spread(gradient, gradient_layout(target), mesh.sizes, generator)

    def on_rank(rank: int, axes: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        made = _convert(pieces[rank], steps, axes)
        if not requires_grad:
            return made, None
        back = (
            torch.autograd.grad(made, pieces[rank], incoming[rank])[0]
            if made is not pieces[rank]
            else incoming[rank]
        )
        return made.detach(), back

    found = mesh.run(on_rank)
    torch.testing.assert_close(joined([made for made, _ in found], target, SHAPE, mesh.sizes), whole)
    if requires_grad:
        gradients = [back for _, back in found]
        torch.testing.assert_close(joined(gradients, gradient_layout(source), SHAPE, mesh.sizes), gradient)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_step_keeps_the_tensor_and_its_gradient(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table(sizes)
    mesh = SimulatedMesh(NAMES[: len(sizes)], sizes, monkeypatch)
    for (here, there), step in table.steps.items():
        source, target = table.layouts[here], table.layouts[there]
        try:
            _check(mesh, source, target, [step])
        except Exception as error:
            raise AssertionError(f"{_text(source)} → {_text(target)} by {step}: {error}") from error


def _text(layout: Layout) -> str:
    return format_layout(layout, NAMES[: len(layout)])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_path_keeps_the_tensor_and_its_gradient(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table(sizes)
    mesh = SimulatedMesh(NAMES[: len(sizes)], sizes, monkeypatch)
    pairs = list(zip(*np.nonzero(np.isfinite(table.seconds)), strict=True))
    for here, there in random.Random(0).sample(pairs, min(PATHS, len(pairs))):
        source, target = table.layouts[here], table.layouts[there]
        _check(mesh, source, target, table.path(source, target))


def test_paths_of_tensors_without_gradient_run_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table((2, 2), requires_grad=False)
    assert all(step.backward == "nothing" for step in table.steps.values())
    assert all(placement.kind != "R|P" for layout in table.layouts for placement in layout)
    mesh = SimulatedMesh(NAMES, (2, 2), monkeypatch)
    for source, target in random.Random(0).sample(list(product(table.layouts, repeat=2)), PATHS):
        if np.isfinite(table.seconds[table.index(source), table.index(target)]):
            _check(mesh, source, target, table.path(source, target), requires_grad=False)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_paths_are_shortest(sizes: tuple[int, ...]) -> None:
    seconds = _table(sizes).seconds
    detours = (seconds[:, :, None] + seconds[None, :, :]).min(axis=1)
    assert (seconds <= detours + 1e-12).all()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_no_path_is_dearer_than_the_single_step_and_each_costs_what_its_steps_do(
    sizes: tuple[int, ...],
) -> None:
    table = _table(sizes)
    held = [8 * prod(local_shape(SHAPE, layout, sizes)) for layout in table.layouts]
    for (here, there), step in table.steps.items():
        assert table.seconds[here, there] <= _price(step, held[here], held[there])
    for here, there in zip(*np.nonzero(np.isfinite(table.seconds)), strict=True):
        layout, total = table.layouts[here], 0.0
        for step in table.path(table.layouts[here], table.layouts[there]):
            after = (*layout[: step.axis], step.target, *layout[step.axis + 1 :])
            total += _price(step, held[table.index(layout)], held[table.index(after)])
            layout = after
        assert layout == table.layouts[there]
        assert total == pytest.approx(table.seconds[here, there])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_nothing_becomes_a_partial_sum_and_all_else_is_reachable(sizes: tuple[int, ...]) -> None:
    table = _table(sizes)
    for here, there in product(range(len(table.layouts)), repeat=2):
        source, target = table.layouts[here], table.layouts[there]
        becomes_partial = any(
            after.kind == "P" and before.kind != "P" for before, after in zip(source, target, strict=True)
        )
        assert np.isinf(table.seconds[here, there]) == becomes_partial


def test_sum_over_two_axes_is_scattered_first() -> None:
    """An all-reduce over both axes moves more than a reduce-scatter, a smaller all-reduce and a gather."""
    shape = (2400, 1200)
    table = conversion_table(shape, 8, (SHARDS,) * 2, (2, 3), _price, requires_grad=True)
    steps = table.path((PARTIAL, PARTIAL), (REPLICATE, REPLICATE))
    assert [step.forward for step in steps] == ["reduce_scatter", "all_reduce", "all_gather"]
    assert [step.axis for step in steps] == [0, 1, 0]


def test_a_step_on_an_axis_that_others_cut_further_is_not_a_plain_collective() -> None:
    table = _table((2, 2))
    both = table.index((shard(0), shard(0)))
    taken = [step.axis for (here, _), step in table.steps.items() if here == both]
    assert set(taken) == {1}


PLACEMENTS = (REPLICATE, REPLICATE_PARTIAL, PARTIAL, shard(0), shard(3), shard(1, 3), shard(12, 16))


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_placements_round_trip_as_text(placement: Placement) -> None:
    assert parse_placement(str(placement)) == placement


def test_layouts_round_trip_as_text() -> None:
    for layout in product(PLACEMENTS, repeat=2):
        assert parse_layout(format_layout(layout, NAMES), NAMES) == layout
    assert parse_layout("b:S(1)", NAMES) == (REPLICATE, shard(1))
    assert parse_layout("", NAMES) == (REPLICATE, REPLICATE)


@pytest.mark.parametrize("text", ["S(x)", "S(-1)", "S(0)x", "Q", "S(0) x3", ""])
def test_what_is_no_placement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a placement"):
        parse_placement(text)


def test_a_layout_names_axes_of_the_mesh() -> None:
    with pytest.raises(ValueError, match="names the axis 'c'"):
        parse_layout("a:R c:S(0)", NAMES)


@pytest.mark.parametrize(
    ("layout", "legal"),
    [
        ((shard(0), shard(0)), True),
        ((shard(0), shard(0, 2)), True),
        ((shard(0, 2), shard(0)), True),
        ((shard(0, 4), shard(0)), True),
        ((shard(0, 3), shard(0)), False),  # 3 blocks cannot be dealt out to 2 ranks
        ((shard(0, 12), shard(1)), True),
        ((shard(0, 8), shard(1)), False),  # blocks of 3 do not halve
        ((shard(2), REPLICATE), False),
    ],
    ids=str,
)
def test_blocks_nest_or_the_layout_is_illegal(layout: Layout, legal: bool) -> None:
    assert is_legal(SHAPE, layout, (2, 2)) == legal


def test_ranks_hold_what_coarser_levels_left_of_their_blocks() -> None:
    layout = (shard(0), shard(0, 6))
    assert local_blocks(layout, (2, 2), 0) == 1
    assert local_blocks(layout, (2, 2), 1) == 3
    assert local_shape(SHAPE, layout, (2, 2)) == (6, 12)
