"""All ranks of a mesh as threads of one process: tensors laid out over them, and collectives between them.

What a layout means is said here once more, by which elements of the whole tensor a rank holds, and without
any code of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from importlib import import_module
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from autopar.runtime.axis import Axis
from autopar.shardings.placement import Layout, Placement

__all__ = ["SimulatedMesh", "gradient_layout", "joined", "spread"]

Coordinates = tuple[int, ...]

_GRADIENT_KIND = {"S": "S", "R": "R", "R|P": "P", "P": "R"}


def gradient_layout(layout: Layout) -> Layout:
    """The layout of the gradient of a tensor laid out as ``layout``, as if it were a tensor."""
    return tuple(Placement(_GRADIENT_KIND[p.kind], p.dim, p.blocks) for p in layout)


def _held_along(
    size: int, dim: int, layout: Layout, sizes: Sequence[int], coordinates: Coordinates
) -> Tensor:
    """Which indices of a dim of ``size`` elements one rank holds, in ascending order.

    A level is all axes that shard the dim in the same number of blocks; a block's elements go to the ranks
    of the level in equal runs, the last axis fastest.
    """
    indices = torch.arange(size)
    held = torch.ones(size, dtype=torch.bool)
    for blocks in {p.blocks for p in layout if p.kind == "S" and p.dim == dim}:
        index, ways = 0, 1
        for placement, axis_size, at in zip(layout, sizes, coordinates, strict=True):
            if placement.kind == "S" and (placement.dim, placement.blocks) == (dim, blocks):
                index, ways = index * axis_size + at, ways * axis_size
        assert size % (blocks * ways) == 0
        block = size // blocks
        outer = prod(  # ranks of coarser levels leave a rank only some of the blocks, whole
            s
            for p, s in zip(layout, sizes, strict=True)
            if p.kind == "S" and p.dim == dim and p.blocks < blocks
        )
        assert blocks % outer == 0
        held &= (indices % block) // (block // ways) == index
    return indices[held]


@lru_cache(maxsize=10_000)
def _places(
    shape: tuple[int, ...], layout: Layout, sizes: tuple[int, ...], at: Coordinates
) -> tuple[Tensor, ...]:
    """Index of a rank's piece in the whole tensor."""
    held = [_held_along(size, dim, layout, sizes, at) for dim, size in enumerate(shape)]
    return torch.meshgrid(*held, indexing="ij") if held else ()


@cache
def ranks_of(sizes: tuple[int, ...]) -> tuple[Coordinates, ...]:
    """Coordinates of every rank, the last axis fastest."""
    return tuple(product(*(range(size) for size in sizes)))


def _summands(whole: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    if count == 1:
        return [whole]
    parts = [torch.randn(whole.shape, dtype=whole.dtype, generator=generator) for _ in range(count - 1)]
    return [*parts, whole - sum(parts, torch.zeros_like(whole))]


def spread(whole: Tensor, layout: Layout, sizes: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Every rank's piece of ``whole``; partial sums are random summands. ``R|P`` counts as ``R``."""
    partial = [axis for axis, placement in enumerate(layout) if placement.kind == "P"]
    groups = ranks_of(tuple(sizes[axis] for axis in partial))
    summand = dict(zip(groups, _summands(whole, len(groups), generator), strict=True))
    pieces = []
    for at in ranks_of(sizes):
        source = summand[tuple(at[axis] for axis in partial)]
        pieces.append(source[_places(tuple(whole.shape), layout, sizes, at)].clone())
    return pieces


def joined(
    pieces: Sequence[Tensor], layout: Layout, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> Tensor:
    """The whole tensor from every rank's piece. Ranks that should hold the same are asserted to do so."""
    partial = [axis for axis, placement in enumerate(layout) if placement.kind == "P"]
    versions: dict[Coordinates, Tensor] = {}
    for at, piece in zip(ranks_of(sizes), pieces, strict=True):
        places = _places(tuple(shape), layout, sizes, at)
        key = tuple(at[axis] for axis in partial)
        if key not in versions:
            versions[key] = torch.full(tuple(shape), torch.nan, dtype=torch.float64)
        found = versions[key]
        expected = tuple(places[0].shape) if places else ()
        assert tuple(piece.shape) == expected, f"rank {at} holds {tuple(piece.shape)}, not {expected}"
        known, mine = found[places], piece.to(torch.float64)
        assert torch.allclose(torch.where(known.isnan(), mine, known), mine), f"rank {at} differs"
        found[places] = mine
    return sum(versions.values(), torch.zeros(tuple(shape), dtype=torch.float64))


class _Meeting:
    """Where the ranks of one group lay down a tensor each and see all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.table: list[Any] = [None] * size

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        self.table[index] = tensor
        self.barrier.wait()
        seen = list(self.table)
        self.barrier.wait()
        return seen


class SimulatedMesh:
    """Ranks as threads. The runtime's collectives meet in memory while :meth:`run` is at work.

    ``monkeypatch`` puts them in the place of ``autopar.torch_private``'s; it has to be the test's own.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], monkeypatch: Any) -> None:
        self.names, self.sizes = tuple(names), tuple(sizes)
        self.ranks = ranks_of(self.sizes)
        self._here = threading.local()
        self._meetings: dict[str, _Meeting] = {}
        replacements = {
            "all_reduce_now": self._all_reduce,
            "all_gather_now": self._all_gather,
            "reduce_scatter_now": self._reduce_scatter,
            "all_to_all_now": self._all_to_all,
        }
        for module in ("collectives", "cross_entropy"):
            for name, function in replacements.items():
                # by module: the package's attribute ``cross_entropy`` is the function
                monkeypatch.setattr(import_module(f"autopar.runtime.{module}"), name, function, raising=False)

    def axes(self, at: Coordinates) -> dict[str, Axis]:
        """The axes as the rank at ``at`` sees them."""
        return {
            name: Axis(name, self.sizes[place], at[place], f"{place}:{(*at[:place], -1, *at[place + 1 :])}")
            for place, name in enumerate(self.names)
        }

    def run(self, function: Callable[[int, dict[str, Axis]], Any]) -> list[Any]:
        """``function(rank, axes)`` on every rank at the same time; results in the order of the ranks."""
        self._meetings = {
            axis.group_name: _Meeting(axis.size) for at in self.ranks for axis in self.axes(at).values()
        }
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            futures = [pool.submit(self._run_one, function, rank) for rank in range(len(self.ranks))]
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]

    def _run_one(self, function: Callable[[int, dict[str, Axis]], Any], rank: int) -> Any:
        axes = self.axes(self.ranks[rank])
        self._here.indices = {axis.group_name: axis.index for axis in axes.values()}
        try:
            return function(rank, axes)
        except BaseException:
            for meeting in self._meetings.values():
                meeting.barrier.abort()
            raise

    def _exchange(self, tensor: Tensor, group: str) -> tuple[int, list[Tensor]]:
        index = self._here.indices[group]
        return index, self._meetings[group].exchange(index, tensor.detach())

    def _all_reduce(self, tensor: Tensor, operation: str, group: str) -> Tensor:
        stacked = torch.stack(self._exchange(tensor, group)[1])
        return stacked.amax(0) if operation == "max" else stacked.sum(0).to(tensor.dtype)

    def _all_gather(self, tensor: Tensor, size: int, group: str) -> Tensor:
        return torch.cat(self._exchange(tensor, group)[1])

    def _reduce_scatter(self, tensor: Tensor, size: int, group: str) -> Tensor:
        index, all_of_them = self._exchange(tensor, group)
        return torch.stack(all_of_them).sum(0).chunk(size)[index].clone()

    def _all_to_all(self, tensor: Tensor, size: int, group: str) -> Tensor:
        index, all_of_them = self._exchange(tensor, group)
        return torch.cat([each.chunk(size)[index] for each in all_of_them])
