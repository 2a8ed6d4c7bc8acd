"""A module tree made from parameter names alone, to run a generated program without the user's module."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autopar.runtime.homes import is_elsewhere
from autopar.runtime.identity import holders
from autopar.runtime.parameter import Parameter

__all__ = ["initialize", "materialize", "parameter_tree"]

WEIGHT_STD = 0.02
"""Standard deviation of initial weights (Radford et al., GPT-2, 2019)."""


def parameter_tree(
    parameters: Iterable[Parameter],
    classes: Mapping[str, type[nn.Module]],
    device: torch.device | str = "meta",
) -> nn.Module:
    """Build modules with the given parameters and buffers under their names.

    ``classes`` gives the class of some paths, the empty path being the root; the others are plain
    ``nn.Module``s, or a ``ModuleList`` where the children are numbered 0, 1, 2…. Tied weights are one object.
    Values are not set: see ``initialize``.
    """
    records = list(parameters)
    paths = {record.name.rpartition(".")[0] for record in records} | set(classes)
    root = _module("", _children(paths), classes)
    made: dict[str, Tensor] = {}
    for record in sorted(records, key=lambda record: record.alias_of is not None):
        owner, _, attribute = record.name.rpartition(".")
        tensor = made.get(record.alias_of or "")
        if tensor is None:
            tensor = torch.empty(record.shape, dtype=record.dtype, device=device)
            tensor = tensor if record.is_buffer else nn.Parameter(tensor, record.requires_grad)
        made[record.name] = tensor
        if record.is_buffer:
            root.get_submodule(owner).register_buffer(attribute, tensor, record.is_persistent)
        else:
            root.get_submodule(owner).register_parameter(attribute, cast(nn.Parameter, tensor))
    return root


def _children(paths: Iterable[str]) -> dict[str, list[str]]:
    """Names of the direct children of every path, in order of appearance, numbers sorted."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(paths):
        parent = ""
        for name in path.split(".") if path else ():
            found.setdefault(parent, {})[name] = None
            parent = f"{parent}.{name}" if parent else name
    return {
        parent: sorted(names, key=int) if all(map(str.isdigit, names)) else list(names)
        for parent, names in found.items()
    }


def _module(
    path: str, children: Mapping[str, list[str]], classes: Mapping[str, type[nn.Module]]
) -> nn.Module:
    names = children.get(path, [])
    is_list = bool(names) and names == [str(number) for number in range(len(names))] and path not in classes
    module = nn.ModuleList() if is_list else classes.get(path, nn.Module)()
    for name in names:
        module.add_module(name, _module(f"{path}.{name}" if path else name, children, classes))
    return module


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give every parameter and buffer memory on ``device``, without values. Tied weights stay one tensor.

    ``nn.Module.to_empty`` alone makes a tensor for each place that holds one.
    """
    ties = [holder.places for holder in holders(module) if len(holder.places) > 1]
    module.to_empty(device=device)
    for (owner, attribute), *others in ties:
        for other, name in others:
            setattr(other, name, getattr(owner, attribute))


@torch.no_grad()
def initialize(module: nn.Module, seed: int = 0) -> None:
    """Fill parameters and buffers in place, sharded or not; ranks that hold the same shard draw the same.

    Weights of two and more dims: normal, standard deviation 0.02. One-dimensional parameters: ones when
    named ``…weight`` (the scale of a norm), zeros otherwise. Buffers: zeros. The values of a parameter depend
    on its name, its layout and the seed.
    """
    for holder in holders(module):
        name, parameter = holder.names[0], holder.parameter
        if is_elsewhere(parameter):
            continue
        values = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if parameter.ndim < 2:
            values.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        generator = torch.Generator(values.device)
        generator.manual_seed(zlib.crc32(f"{seed} {name} {_shard_of(parameter)}".encode()))
        values.normal_(std=WEIGHT_STD, generator=generator)
    for buffer in module.buffers():
        buffer.zero_()


def _shard_of(parameter: Tensor) -> tuple[int, ...]:
    """This rank's coordinates on the axes that shard the parameter; -1 on those that replicate it."""
    if not isinstance(parameter, DTensor):
        return ()
    coordinates = parameter.device_mesh.get_coordinate() or ()
    return tuple(
        -1 if placement.is_replicate() else index
        for placement, index in zip(parameter.placements, coordinates, strict=True)
    )
