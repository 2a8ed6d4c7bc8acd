"""A torch.export program as one flat list of operator calls on numbered tensors.

``torch.export`` hands over an FX graph with sub-graphs (``no_grad`` regions), tuples taken apart by
``getitem``, and assertions. ``trace_program`` inlines, unpacks and drops these; the passes beside this file
(``functional``, ``simplify``, ``masks``, ``gradients``) each turn one ``Trace`` into another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from autopar.capture.sources import source_line
from autopar.errors import CaptureError
from autopar.torch_private import is_operator

__all__ = ["Call", "Slot", "Trace", "TracedTensor", "map_slots", "slots_of", "trace_program"]

CONSTANT_ELEMENTS = 2**16
"""Larger tensors that a forward brings along itself are refused: a graph stores them as numbers."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of the trace, by its number."""

    index: int


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """What is known of a tensor without running anything."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call; arguments hold ``Slot``s where the call takes tensors, lists are tuples."""

    target: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[int, ...]
    returns_list: bool = False
    """True when the operator returns several tensors (a tuple or a list)."""
    aliases: int | None = None
    """The argument whose memory the results share, if any."""
    source: str = ""
    modules: tuple[str, ...] = ("",)
    """Paths of the modules being run, outermost first; ``@1`` marks a module's second call."""
    records_gradient: bool = True
    """False inside ``torch.no_grad()``."""

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload: ``add``."""
        return self.target.overloadpacket.__name__

    @property
    def reads(self) -> tuple[int, ...]:
        """The tensors that the call takes, positional arguments first."""
        return tuple(slot.index for slot in (*slots_of(self.arguments), *slots_of(self.keywords)))

    def with_slots(self, change: Callable[[Slot], Any]) -> Call:
        """Returns the call on other tensors."""
        return replace(
            self, arguments=map_slots(self.arguments, change), keywords=map_slots(self.keywords, change)
        )


@dataclass(slots=True)
class Trace:
    """A program under construction: passes replace ``calls`` and ``outputs`` and add tensors."""

    tensors: list[TracedTensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    """Parameters and buffers by the name that ``torch.export`` chose."""
    buffers: set[int] = field(default_factory=set)
    constants: dict[int, Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def replace_slots(self, same: dict[Slot, Slot]) -> None:
        """Makes every call and output read ``same[slot]`` where it reads ``slot``."""

        def change(slot: Slot) -> Slot:
            return same.get(slot, slot)

        self.calls = [call.with_slots(change) for call in self.calls]
        self.outputs = [change(Slot(output)).index for output in self.outputs]

    def add(self, tensor: TracedTensor) -> Slot:
        """Returns the slot of a new tensor."""
        self.tensors.append(tensor)
        return Slot(len(self.tensors) - 1)


def map_slots(argument: Any, change: Callable[[Slot], Any]) -> Any:
    """Returns an argument with every slot in it replaced by ``change(slot)``."""
    if isinstance(argument, Slot):
        return change(argument)
    if isinstance(argument, tuple | list):
        return tuple(map_slots(each, change) for each in argument)
    if isinstance(argument, dict):
        return {name: map_slots(each, change) for name, each in argument.items()}
    return argument


def slots_of(argument: Any) -> Iterator[Slot]:
    """Yields the slots in an argument, in order."""
    if isinstance(argument, Slot):
        yield argument
    elif isinstance(argument, tuple | list):
        for each in argument:
            yield from slots_of(each)
    elif isinstance(argument, dict):
        yield from slots_of(tuple(argument.values()))


def trace_program(program: torch.export.ExportedProgram) -> Trace:
    """Flattens an exported program.

    Raises CaptureError for autocast regions, shapes that depend on data and constants without values.
    """
    trace = Trace()
    bound: dict[fx.Node, Any] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if isinstance(node.meta["val"], Tensor):
            bound[node] = trace.add(_describe(node.meta["val"], node))
            _register(trace, bound[node].index, spec, program)
    outputs = _Flattener(trace, program.graph_module).run(bound, records_gradient=True)
    trace.outputs = [slot.index for slot in slots_of(outputs)]
    return trace


def _register(trace: Trace, index: int, spec: Any, program: torch.export.ExportedProgram) -> None:
    kind = spec.kind.name
    if kind == "USER_INPUT":
        trace.inputs.append(index)
    elif kind in ("PARAMETER", "BUFFER"):
        trace.parameters[index] = spec.target
        if kind == "BUFFER":
            trace.buffers.add(index)
    else:
        trace.constants[index] = _constant(spec.target, program.constants[spec.target])


def _constant(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        raise CaptureError(
            f"the tensor {name!r} that the forward uses has no values on the meta device: register it with "
            "register_buffer, or build the model on the cpu"
        )
    if tensor.numel() > CONSTANT_ELEMENTS or tensor.is_complex():
        raise CaptureError(
            f"the tensor {name!r} that the forward uses ({list(tensor.shape)}, {tensor.dtype}) is neither a "
            "parameter nor a buffer, and too much to write into a plan: register it with "
            "register_buffer(…, persistent=False)"
        )
    return tensor.detach().cpu()


def _describe(tensor: Tensor, node: fx.Node) -> TracedTensor:
    if not all(isinstance(size, int) for size in tensor.shape):
        raise CaptureError(
            f"the shape of {node.name!r} depends on data, not only on shapes: "
            f"{source_line(node.meta.get('stack_trace')) or node.target}. Use a mask or torch.where instead, "
            "which keep the shape."
        )
    return TracedTensor(tuple(tensor.shape), tensor.dtype)


class _Flattener:
    """Adds the calls of one FX graph, and of the graphs inside it, to a trace."""

    def __init__(self, trace: Trace, module: fx.GraphModule) -> None:
        self.trace = trace
        self.module = module

    def run(self, bound: dict[fx.Node, Any], *, records_gradient: bool) -> Any:
        """Adds every call; returns what the graph returns, with slots for tensors."""
        for node in self.module.graph.nodes:
            if node.op == "output":
                return self._resolve(node.args[0], bound)
            if node.op == "get_attr":
                bound[node] = self._attribute(node)
            elif node.op == "call_function":
                bound[node] = self._call(node, bound, records_gradient)
        return ()

    def _resolve(self, argument: Any, bound: dict[fx.Node, Any]) -> Any:
        if isinstance(argument, fx.Node):
            return bound[argument]
        if isinstance(argument, tuple | list):
            return tuple(self._resolve(each, bound) for each in argument)
        if isinstance(argument, dict):
            return {name: self._resolve(each, bound) for name, each in argument.items()}
        return argument

    def _attribute(self, node: fx.Node) -> Any:
        held = getattr(self.module, str(node.target))
        if not isinstance(held, Tensor):
            return held
        slot = self.trace.add(_describe(held, node))
        self.trace.constants[slot.index] = _constant(str(node.target), held)
        return slot

    def _call(self, node: fx.Node, bound: dict[fx.Node, Any], records_gradient: bool) -> Any:
        arguments = self._resolve(node.args, bound)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        if is_operator(node.target):
            return self._operator(node, arguments, self._resolve(node.kwargs, bound), records_gradient)
        return self._region(node, arguments, records_gradient)

    def _region(self, node: fx.Node, arguments: tuple[Any, ...], records_gradient: bool) -> Any:
        kind = getattr(node.target, "__name__", str(node.target))
        if kind == "wrap_with_set_grad_enabled":
            enabled, inner, *given = arguments
            return self._inline(inner, given, records_gradient and enabled)
        if kind == "wrap_with_autocast":
            _device, dtype, enabled, _cache, inner, *given = arguments
            if enabled:
                raise CaptureError(
                    f"the forward opens torch.autocast ({dtype}) itself, in {_first_source(inner)}: "
                    "remove it and choose the precision of the plan instead"
                )
            return self._inline(inner, given, records_gradient)
        raise CaptureError(
            f"{_source(node) or node.name}: {kind} has no meaning in a captured graph. "
            "Write this part of the forward without it."
        )

    def _inline(self, inner: fx.GraphModule, given: list[Any], records_gradient: bool) -> Any:
        placeholders = [node for node in inner.graph.nodes if node.op == "placeholder"]
        bound = dict(zip(placeholders, given, strict=True))
        return _Flattener(self.trace, inner).run(bound, records_gradient=records_gradient)

    def _operator(self, node: fx.Node, arguments: Any, keywords: Any, records_gradient: bool) -> Any:
        value = node.meta.get("val")
        if value is None:
            return None
        values = (value,) if isinstance(value, Tensor) else value
        if not isinstance(values, tuple | list) or not all(isinstance(each, Tensor) for each in values):
            raise CaptureError(
                f"{_source(node) or node.name}: {node.target} reads a number out of a tensor, which decides "
                "what the forward does. Keep it a tensor."
            )
        results = tuple(self.trace.add(_describe(each, node)) for each in values)
        self.trace.calls.append(
            Call(
                target=node.target,
                arguments=arguments,
                keywords=keywords,
                results=tuple(slot.index for slot in results),
                returns_list=not isinstance(value, Tensor),
                aliases=_shared_with(node, arguments),
                source=_source(node),
                modules=_module_calls(node),
                records_gradient=records_gradient,
            )
        )
        return results[0] if isinstance(value, Tensor) else results


def _module_calls(node: fx.Node) -> tuple[str, ...]:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return tuple(
        path + (f"@{key.rpartition('@')[2]}" if "@" in key else "") for key, (path, _) in stack.items()
    )


def _source(node: fx.Node) -> str:
    return source_line(node.meta.get("stack_trace"))


def _first_source(inner: fx.GraphModule) -> str:
    return next((line for node in inner.graph.nodes if (line := _source(node))), "its forward")


def _shared_with(node: fx.Node, arguments: tuple[Any, ...]) -> int | None:
    """The slot among the direct arguments whose memory the node's results share."""
    value = node.meta["val"]
    results = (value,) if isinstance(value, Tensor) else value
    memory = {id(each.untyped_storage()) for each in results}
    for given, slot in zip(node.args, arguments, strict=True):
        if isinstance(given, fx.Node) and isinstance(slot, Slot):
            held = given.meta.get("val")
            if isinstance(held, Tensor) and id(held.untyped_storage()) in memory:
                return slot.index
    return None
