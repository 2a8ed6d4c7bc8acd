"""Example inputs: flattened with the path of each tensor, made distinct, and put where the module is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.graph import GraphInput, Value
from autopar.capture.names import Namer
from autopar.torch_private import flatten_with_paths, rebuild

__all__ = ["Example", "graph_inputs", "module_device", "prepare", "with_tensors"]


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: tuple[tuple[str, Tensor], ...]
    """Every tensor among them in flattened order, with its path: ``0``, ``labels``, ``0.tokens``."""


def module_device(module: nn.Module) -> torch.device | None:
    """Returns the device of the module's first parameter or buffer, None when it has neither."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return None if first is None else first.device


def prepare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """Returns arguments that are fit for export: no tensor twice (export would merge them), one device."""
    leaves, structure = flatten_with_paths((args, kwargs))
    device = module_device(module)
    given = [_fit(leaf, device) for _, leaf in leaves]
    fit_args, fit_kwargs = rebuild(given, structure)
    tensors = tuple(
        (path.partition(".")[2], tensor)
        for (path, _), tensor in zip(leaves, given, strict=True)
        if isinstance(tensor, Tensor)
    )
    return Example(fit_args, fit_kwargs, tensors)


def with_tensors(example: Example, tensors: list[Tensor]) -> Example:
    """Returns an example with other tensors in the same places."""
    leaves, structure = flatten_with_paths((example.args, example.kwargs))
    fresh = iter(tensors)
    given = [next(fresh) if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
    args, kwargs = rebuild(given, structure)
    paths = [path for path, _ in example.tensors]
    return Example(args, kwargs, tuple(zip(paths, tensors, strict=True)))


def _fit(leaf: Any, device: torch.device | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    fit = leaf.detach()
    if device is not None and fit.device != device:
        fit = torch.empty_strided(fit.shape, fit.stride(), dtype=fit.dtype, device=device)
    return fit.requires_grad_(leaf.requires_grad)


def graph_inputs(module: nn.Module, example: Example) -> tuple[GraphInput, ...]:
    """Describes the tensors of an example, named like the parameters of the module's forward."""
    namer, names = Namer(), _positional_names(module)
    return tuple(
        GraphInput(
            Value(
                name=namer.take(_readable(path, names)),
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                requires_grad=tensor.requires_grad,
            ),
            path,
        )
        for path, tensor in example.tensors
    )


def _positional_names(module: nn.Module) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        each.name for each in inspect.signature(module.forward).parameters.values() if each.kind in positional
    ]


def _readable(path: str, names: list[str]) -> str:
    """``tokens`` for ``0``, ``batch_0`` for ``0.0``, ``labels`` for ``labels``."""
    first, *inner = path.split(".")
    if first.isdigit():
        first = names[int(first)] if int(first) < len(names) else f"input_{first}"
    return "_".join((first, *inner))
