"""Capture in the precision of the computation: parameters rest in float32 and are used in 16 bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.graph import Graph, Operator, Ref, SegmentType, Symbol, Value
from autopar.capture.passes import capture
from autopar.torch_private import flatten_with_paths, rebuild

__all__ = ["COMPUTE_DTYPES", "capture_in"]

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of activations and of parameters in use, by precision. Scaling an fp16 loss is the training loop's business."""


def capture_in(precision: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The graph of ``module`` as it computes in ``precision``.

    In 16 bits, float32 parameters and inputs are used as 16-bit ones (buffers stay), and cross-entropy reads
    float32 logits. The graph's parameters keep the dtype in which they rest. Raises ``CaptureError``.
    """
    dtype = COMPUTE_DTYPES[precision]
    if dtype is torch.float32:
        return capture(module, args, kwargs)
    graph = capture(_in_dtype(module, dtype), *_inputs_in_dtype(args, kwargs, dtype))
    types = tuple(_with_wide_losses(segment) for segment in graph.types)
    return replace(
        graph,
        parameters=tuple(
            replace(p, dtype=str(found.dtype).removeprefix("torch."))
            if (found := _parameter(module, p.name)) is not None
            else p
            for p in graph.parameters
        ),
        types=types,
        values=_outer_values(graph, types),
    )


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner)._parameters.get(attribute)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the module whose float32 parameters have another dtype (and no values); all else is shared."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        wanted = dtype if parameter.dtype == torch.float32 else parameter.dtype
        blank = torch.empty(parameter.shape, dtype=wanted, device=parameter.device)
        shared[id(parameter)] = nn.Parameter(blank, parameter.requires_grad)
    return copy.deepcopy(module, shared)


def _inputs_in_dtype(
    args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, structure = flatten_with_paths((args, kwargs))
    cast = [
        leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf
        for _, leaf in leaves
    ]
    rebuilt: tuple[tuple[Any, ...], dict[str, Any]] = rebuild(cast, structure)
    return rebuilt


def _with_wide_losses(segment: SegmentType) -> SegmentType:
    """Cross-entropy of 16-bit logits as cross-entropy of the same numbers in float32."""
    values, operators = dict(segment.values), []
    for operator in segment.operators:
        logits = operator.arguments[0] if operator.arguments else None
        is_loss = operator.target == "aten.cross_entropy_loss.default"
        if is_loss and isinstance(logits, Ref) and values[logits.value].dtype in ("bfloat16", "float16"):
            wide = _unused(f"{logits.value}_wide", values)
            values[wide] = replace(values[logits.value], name=wide, dtype="float32")
            operators.append(_cast(operator, logits, wide))
            for name in operator.results:
                if name is not None:
                    values[name] = replace(values[name], dtype="float32")
            operator = replace(operator, arguments=(Ref(wide), *operator.arguments[1:]))
        operators.append(operator)
    return replace(segment, operators=tuple(operators), values=values)


def _outer_values(graph: Graph, types: tuple[SegmentType, ...]) -> dict[str, Value]:
    """Values between segments with the dtypes that the segments now give them."""
    by_name, values = {segment.name: segment for segment in types}, dict(graph.values)
    for call in graph.calls:
        segment = by_name[call.type]
        for outside, inside in zip(call.results, segment.outputs, strict=True):
            values[outside] = replace(values[outside], dtype=segment.values[inside].dtype)
    return values


def _cast(loss: Operator, logits: Ref, wide: str) -> Operator:
    return replace(
        loss,
        name=wide,
        target="aten.to.dtype",
        arguments=(logits, Symbol("dtype", "float32")),
        keywords=(),
        results=(wide,),
    )


def _unused(wanted: str, values: dict[str, Any]) -> str:
    name, count = wanted, 1
    while name in values:
        count += 1
        name = f"{wanted}_{count}"
    return name
