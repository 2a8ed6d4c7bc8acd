"""The captured forward graph: operators on values, grouped into segments that repeat by type.

A ``Graph`` is what capture hands on and what a plan stores. It holds no torch object, so it is written
to JSON as it is. Repeated blocks appear once, as a ``SegmentType``, and are used by many ``SegmentCall``s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Argument",
    "Constant",
    "Graph",
    "GraphInput",
    "GraphParameter",
    "Microbatches",
    "Operator",
    "Parameter",
    "Ref",
    "SegmentCall",
    "SegmentType",
    "Symbol",
    "Value",
    "full_name",
]


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the graph, described by its global (unsharded) shape."""

    name: str
    """A Python identifier, unique within its segment type."""
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the prefix: ``float32``, ``int64``, ``bool``…"""
    requires_grad: bool
    """True when a gradient flows back through this value."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value of the same segment."""

    value: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """An argument that is a torch object: ``Symbol("dtype", "float32")``.

    ``kind`` is one of ``dtype``, ``device``, ``layout``, ``memory_format``, or ``training`` (the module's
    training flag, where the captured call was told that it trains). Devices are all ``default``: the one on
    which the program runs.
    """

    kind: str
    name: str


Argument = Ref | Symbol | bool | int | float | str | None | tuple["Argument", ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of an ATen operator."""

    name: str
    """Unique within the segment type; the name of its (first) result."""
    target: str
    """``aten.linear.default``"""
    arguments: tuple[Argument, ...]
    """Positional arguments, as the operator's schema orders them."""
    keywords: tuple[tuple[str, Argument], ...]
    results: tuple[str | None, ...]
    """Names of the result values; None for a result that nobody uses."""
    source: str = ""
    """The user's source line: ``llama.py:41   h = F.silu(self.gate(x)) * self.up(x)``."""
    module: str = ""
    """Path of the module that made the call, relative to the segment's own module."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer used by a segment."""

    value: str
    """Name of its value in the segment type."""
    path: str
    """Path relative to the segment's module: ``attn.q.weight``.

    For runs of the root module it is the name that ``named_parameters()`` lists. In a block, tied weights go
    by a name inside the block, which may be an alias: see ``GraphParameter.alias_of``.
    """
    is_buffer: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A small tensor that the forward itself made, stored by value."""

    value: str
    data: Any
    """Nested lists of numbers, as ``tensor.tolist()`` gives them."""


@dataclass(frozen=True, slots=True)
class SegmentType:
    """A run of operators; equal runs share one type."""

    name: str
    """A Python class name: ``Root0`` or the class of the block, ``GPTBlock``."""
    inputs: tuple[str, ...]
    """Values handed in by the caller, in order."""
    parameters: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    operators: tuple[Operator, ...]
    """In execution order."""
    outputs: tuple[str, ...]
    values: dict[str, Value] = field(default_factory=dict)
    """Every value of the segment by name: inputs, parameters, constants and results."""


@dataclass(frozen=True, slots=True)
class SegmentCall:
    """One use of a segment type. Calls run in the order in which the graph lists them."""

    type: str
    module: str
    """Path of the module the segment belongs to: ``layers.3``; empty for runs of the root module."""
    arguments: tuple[str, ...]
    """Graph-level values handed to the segment's inputs."""
    results: tuple[str, ...]
    """Graph-level names given to the segment's outputs."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One tensor among the (flattened) inputs of the module."""

    value: Value
    """Named at graph level; ``path`` says where the caller passes it."""
    path: str
    """``0`` for the first positional argument, ``labels`` for a keyword, ``0.tokens`` inside a dict."""


@dataclass(frozen=True, slots=True)
class GraphParameter:
    """One parameter or buffer of the module, under its own full name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    is_buffer: bool
    is_persistent: bool = True
    alias_of: str | None = None
    """For tied weights: the name under which ``named_parameters()`` lists the tensor; otherwise None."""


@dataclass(frozen=True, slots=True)
class Microbatches:
    """How often a graph that is written for one slice of the batch runs in a step, and what it is given."""

    count: int = 1
    dims: dict[str, int] = field(default_factory=dict)
    """Dim along which each input is cut, by value name; inputs that are not named go whole to every slice."""
    joins: tuple[str, ...] = ()
    """How the slices' outputs combine: ``sum``, ``cat 0`` (dim), ``same``; none where the count is 1."""
    counted: dict[str, str] = field(default_factory=dict)
    """Inputs that the program counts itself before the first slice: the number of targets of the whole batch
    that a cross-entropy does not ignore, as ``segment type.operator``, by value name."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model: segment types, and the calls that chain them."""

    name: str
    """Class name of the user's module."""
    inputs: tuple[GraphInput, ...]
    parameters: tuple[GraphParameter, ...]
    types: tuple[SegmentType, ...]
    calls: tuple[SegmentCall, ...]
    outputs: tuple[str, ...]
    """Graph-level values of the flattened output."""
    values: dict[str, Value]
    """Graph-level values (inputs and segment results) by name."""
    output_tree: str
    """How the outputs are packed, as ``torch.utils._pytree.treespec_dumps`` writes it, or ``tensor``."""
    notes: tuple[str, ...] = ()
    """What capture changed or could not recognise, in words for the plan."""
    microbatches: Microbatches = field(default_factory=Microbatches)
    """One, as captured: shapes are those of the whole batch."""


def full_name(module: str, path: str) -> str:
    """The name under which the whole model lists a parameter of one of its modules."""
    return f"{module}.{path}" if module else path
