"""From a module and example inputs to a ``Graph``: the order of the passes."""

from __future__ import annotations

from typing import Any

from torch import nn

from autopar.capture.fold import Folder
from autopar.capture.forward import Traced, trace_once, trace_whole
from autopar.capture.functional import make_functional
from autopar.capture.gradients import cut_gradients
from autopar.capture.graph import Graph, GraphInput, GraphParameter
from autopar.capture.inputs import Example, graph_inputs, prepare
from autopar.capture.masks import drop_constant_masks
from autopar.capture.parameters import ParameterNames, list_parameters, merge_tied
from autopar.capture.segments import Run, cut, repeated_blocks, repeated_calls
from autopar.capture.simplify import copy_held_outputs, drop_identities, drop_unused
from autopar.capture.splice import splice
from autopar.capture.trace import Call, Trace
from autopar.capture.wiring import wire

__all__ = ["capture", "graph_of"]


def capture(module: nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Graph:
    """Returns the forward graph of a module, cut into segments.

    ``args`` and ``kwargs`` are example inputs of the whole global batch; only their shapes and dtypes count
    (numbers, strings and None among them become part of the graph). The module may live on any device,
    ``meta`` included; it is neither run, nor moved, nor changed.

    Raises CaptureError where the forward cannot become a graph, and names the user's line.
    """
    example = prepare(module, args, kwargs or {})
    traced = trace_once(module, example)
    if traced is not None:
        try:
            return graph_of(module, example, traced)
        except Exception:  # the whole model, block by block, is the judge of what can be captured
            pass
    return graph_of(module, example, trace_whole(module, example))


def graph_of(module: nn.Module, example: Example, traced: Traced) -> Graph:
    """Returns the graph of a module of which ``traced`` is the trace, which is used up. Raises CaptureError."""
    trace = traced.trace
    parameters = list_parameters(module)
    inputs = graph_inputs(module, example)
    notes = _simplify(traced, parameters)
    gradients = cut_gradients(trace, _leaves(trace, inputs, parameters))
    names = ParameterNames.of(parameters)
    runs = _cut(trace, names, module)
    folded = Folder(trace, names, gradients, module).fold(wire(trace, runs), _names_of_inputs(trace, inputs))
    return Graph(
        name=type(module).__name__,
        inputs=inputs,
        parameters=parameters,
        types=folded.types,
        calls=folded.calls,
        outputs=folded.outputs,
        values=folded.values,
        output_tree=traced.output_tree,
        notes=notes,
    )


def _simplify(traced: Traced, parameters: tuple[GraphParameter, ...]) -> tuple[str, ...]:
    """Runs the passes on a trace; returns their notes."""
    trace = traced.trace
    merge_tied(trace, parameters)
    splice(trace, traced.bodies, {each.name: each.alias_of or each.name for each in parameters})
    make_functional(trace)
    drop_identities(trace)
    drop_unused(trace)
    notes = drop_constant_masks(trace)
    drop_unused(trace)
    copy_held_outputs(trace)
    return notes


def _leaves(trace: Trace, inputs: tuple[GraphInput, ...], parameters: tuple[GraphParameter, ...]) -> set[int]:
    """The inputs and parameters that require a gradient."""
    trained = {each.name for each in parameters if each.requires_grad}
    leaves = {slot for slot, name in trace.parameters.items() if name in trained}
    return leaves | {s for s, each in zip(trace.inputs, inputs, strict=True) if each.value.requires_grad}


def _names_of_inputs(trace: Trace, inputs: tuple[GraphInput, ...]) -> dict[int, str]:
    return {slot: each.value.name for slot, each in zip(trace.inputs, inputs, strict=True)}


def _cut(trace: Trace, names: ParameterNames, module: nn.Module) -> list[Run]:
    def is_foreign(call: Call, block: str) -> bool:
        held = (trace.parameters[slot] for slot in call.reads if slot in trace.parameters)
        return any(names.inside(name, block) is None for name in held)

    blocks = repeated_blocks(module)
    return cut(trace.calls, blocks | repeated_calls(module, trace.calls, blocks), is_foreign)
