"""Generated programs on simulated ranks: a program's classes bound to copies of the user's module."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from autopar.codegen.program import program_source
from autopar.shardings.placement import REPLICATE, Layout
from autopar.shardings.sharded import ShardedGraph
from autopar.torch_private import flatten_with_paths
from tests.autopar.shardings.simulated import SimulatedMesh, gradient_layout, joined, spread

__all__ = ["NOISE_FLOOR", "loaded", "relative_errors", "train_once"]

NOISE_FLOOR = 1e-3
"""A tensor counts as no smaller, element for element, than this share of the mean of all."""


def loaded(source: str) -> dict[str, Any]:
    """The names that a program defines, executed as a module would be; parameters are plain tensors."""
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "program.py", "exec"), names)
    names["local"] = lambda parameter, dtype=None: parameter if dtype is None else parameter.to(dtype)
    return names


def train_once(
    sharded: ShardedGraph, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], monkeypatch: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradient of every parameter, of one step of the program over all ranks of the mesh."""
    program = loaded(program_source(sharded, "a test"))
    mesh = SimulatedMesh(sharded.axis_names, sharded.sizes, monkeypatch)
    modules = _modules(sharded, module)
    batches = _batches(sharded, args, kwargs)

    def on_rank(rank: int, axes: dict[str, Any]) -> Tensor:
        _bind(modules[rank], program, axes)
        loss = modules[rank](*batches[rank])
        loss.backward()
        return loss.detach()

    losses = mesh.run(on_rank)
    plain = (REPLICATE,) * len(sharded.axes)
    return joined(losses, plain, losses[0].shape, mesh.sizes), _gradients(sharded, module, modules)


def _modules(sharded: ShardedGraph, module: nn.Module) -> list[nn.Module]:
    """A copy of the module for every rank, each parameter cut to what the rank holds."""
    copies = [copy.deepcopy(module) for _ in range(_ranks(sharded))]
    for parameter in sharded.graph.parameters:
        if parameter.alias_of is None:
            layout = _resting(sharded, parameter.name)
            whole = _attribute(module, parameter.name).detach()
            pieces = spread(whole, layout, sharded.sizes, torch.Generator())
            for each, piece in zip(copies, pieces, strict=True):
                held = _attribute(each, parameter.name)
                held.data = piece
    return copies


def _ranks(sharded: ShardedGraph) -> int:
    count = 1
    for size in sharded.sizes:
        count *= size
    return count


def _resting(sharded: ShardedGraph, name: str) -> Layout:
    return sharded.parameters.get(name, (REPLICATE,) * len(sharded.axes))


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _batches(
    sharded: ShardedGraph, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[Tensor, ...]]:
    """Every rank's inputs, in the order of the root's arguments."""
    leaves = {path.partition(".")[2]: leaf for path, leaf in flatten_with_paths((args, kwargs))[0]}
    columns = [
        spread(leaves[i.path], sharded.inputs[i.value.name], sharded.sizes, torch.Generator())
        for i in sharded.graph.inputs
    ]
    return list(zip(*columns, strict=True))


def _bind(module: nn.Module, program: dict[str, Any], axes: dict[str, Any]) -> None:
    for path, kind in {**program["BLOCKS"], "": program["Root"]}.items():
        owner = module.get_submodule(path)
        owner.axes = axes
        owner.forward = MethodType(kind.forward, owner)
    if "Head" in program:
        module.run_head = MethodType(program["Head"].forward, module)


def _gradients(sharded: ShardedGraph, module: nn.Module, modules: list[nn.Module]) -> dict[str, Tensor]:
    """Gradients as the data-parallel engine would leave them: ``R|P`` at rest is summed over the ranks."""
    found = {}
    for name, parameter in module.named_parameters():
        pieces = [_attribute(each, name) for each in modules]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in pieces]
        layout = gradient_layout(_resting(sharded, name))
        found[name] = joined(gradients, layout, parameter.shape, sharded.sizes)
    return found


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """‖found − expected‖ / ‖expected‖ by name; some gradients are zero but for rounding, hence the floor."""
    square = sum(t.double().square().sum().item() for t in expected.values())
    floor = NOISE_FLOOR * (square / sum(t.numel() for t in expected.values())) ** 0.5
    return {
        name: (found[name].double() - wanted.double()).norm().item()
        / max(wanted.double().norm().item(), floor * wanted.numel() ** 0.5)
        for name, wanted in expected.items()
    }
