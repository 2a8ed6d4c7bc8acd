"""Runs a graph operator by operator on real tensors: the reference that programs are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.graph import Argument, Graph, Operator, Ref, SegmentCall, SegmentType, Symbol
from autopar.torch_private import flatten_with_paths

__all__ = ["TRAINING_PROBABILITIES", "interpret", "operator_function"]

TRAINING_PROBABILITIES = {"aten.scaled_dot_product_attention.default": 4}
"""Operators with no training flag of their own: which argument is a dropout probability, 0 in evaluation."""


def interpret(
    graph: Graph, module: nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> tuple[Tensor, ...]:
    """Returns the flattened outputs of ``module(*args, **kwargs)``, computed from its graph.

    Autograd records the operators, so that the module's parameters get their gradients from ``backward()``.
    """
    leaves, _ = flatten_with_paths((args, kwargs or {}))
    tensors = {path.partition(".")[2]: leaf for path, leaf in leaves}
    environment = {each.value.name: tensors[each.path] for each in graph.inputs}
    types = {each.name: each for each in graph.types}
    for call in graph.calls:
        _run_segment(types[call.type], call, module, environment)
    return tuple(environment[name] for name in graph.outputs)


def _run_segment(kind: SegmentType, call: SegmentCall, module: nn.Module, outer: dict[str, Tensor]) -> None:
    values = {name: outer[given] for name, given in zip(kind.inputs, call.arguments, strict=True)}
    owner = module.get_submodule(call.module)
    device = next((tensor.device for tensor in outer.values()), torch.device("cpu"))
    for parameter in kind.parameters:
        values[parameter.value] = _held(owner, parameter.path)
    for constant in kind.constants:
        dtype = getattr(torch, kind.values[constant.value].dtype)
        values[constant.value] = torch.tensor(constant.data, dtype=dtype, device=device)
    for operator in kind.operators:
        _run_operator(operator, values, module.training, device)
    outer.update((given, values[name]) for name, given in zip(kind.outputs, call.results, strict=True))


def _held(owner: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    return getattr(owner.get_submodule(parent), name)


def _run_operator(
    operator: Operator, values: dict[str, Tensor], training: bool, device: torch.device
) -> None:
    def real(argument: Argument) -> Any:
        if isinstance(argument, Ref):
            return values[argument.value]
        if isinstance(argument, Symbol):
            return _symbol(argument, training, device)
        if isinstance(argument, tuple):
            return [real(each) for each in argument]
        return argument

    arguments = [real(argument) for argument in operator.arguments]
    probability = TRAINING_PROBABILITIES.get(operator.target)
    if probability is not None and not training and len(arguments) > probability:
        arguments[probability] = 0.0
    keywords = {name: real(argument) for name, argument in operator.keywords}
    result = operator_function(operator.target)(*arguments, **keywords)
    results = (result,) if isinstance(result, Tensor) else result
    values.update((name, each) for name, each in zip(operator.results, results, strict=True) if name)


def _symbol(symbol: Symbol, training: bool, device: torch.device) -> Any:
    if symbol.kind == "training":
        return training
    return device if symbol.kind == "device" else getattr(torch, symbol.name)


def operator_function(target: str) -> Callable[..., Any]:
    """Returns the torch operator named ``aten.linear.default``."""
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
