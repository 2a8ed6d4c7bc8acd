"""A whole program: its tables, a class per block type, a root that chains them, and ``build``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from autopar.capture.graph import GraphInput, SegmentCall, SegmentType, full_name
from autopar.capture.upstream import counted_targets, upstream
from autopar.codegen.lines import Line, layout_lines
from autopar.codegen.segment import Scope, SegmentWriter
from autopar.codegen.tables import blocks_table, program_tables
from autopar.codegen.text import attribute, comment, identifier, literal
from autopar.shardings.calls import Call
from autopar.shardings.placement import REPLICATE, Layout, local_shape
from autopar.shardings.sharded import ShardedGraph

__all__ = ["program_source"]


@dataclass(frozen=True, slots=True)
class _Function:
    """One generated forward."""

    name: str
    note: str
    arguments: tuple[str, ...]
    scope: Scope
    results: tuple[str, ...]


def program_source(sharded: ShardedGraph, title: str) -> str:
    """The program of a sharded graph as Python source; ``title`` becomes the first line of its docstring."""
    blocks = [_block(sharded, segment) for segment in sharded.graph.types if _is_block(sharded, segment)]
    root = _Root(sharded).function()
    functions = [*blocks, root]
    counting = _counting(sharded)
    parts = [
        _header(title, sharded),
        _imports([*functions, *counting]),
        program_tables(sharded),
        *(_class(function) for function in functions),
        *(_counts(function) for function in counting),
        _build(sharded),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _counting(sharded: ShardedGraph) -> list[_Function]:
    """The function that counts targets before the first microbatch, where losses divide by their number."""
    counted = sharded.graph.microbatches.counted
    places = counted_targets(sharded.graph)
    part = upstream(sharded.graph, places)
    if not counted or part is None:
        return []
    root = _Root(replace(sharded, graph=part))
    arguments = [root.bind_input(i) for i in sharded.graph.inputs if i.value.name not in counted]
    root.write_calls()
    results = []
    for where, output in zip(counted.values(), part.outputs, strict=True):
        results.append(_count(sharded, where, root, output))
    return [_Function("count_targets_of", "", tuple(arguments), root.scope, tuple(results))]


def _count(sharded: ShardedGraph, where: str, root: _Root, output: str) -> str:
    """The expression of one count, over all axes that shard the targets."""
    name, _, operator = where.partition(".")
    segment = next(segment for segment in sharded.graph.types if segment.name == name)
    entropy = Call(next(op for op in segment.operators if op.name == operator), segment.values)
    layout = sharded.strategies[name, operator].operands[1]
    axes = [axis.name for axis, placement in zip(sharded.axes, layout, strict=True) if placement.is_shard]
    root.scope.axes.update(axes)
    root.scope.runtime.add("count_targets")
    written = [root.as_read(output, (name, entropy.operands[1].name), layout)]
    written += [f"axes=({', '.join(axes)}{',' if len(axes) == 1 else ''})"] if axes else []
    ignored = entropy.argument(4, "ignore_index", -100)
    written += [f"ignore_index={literal(ignored, {}, '')}"] if ignored != -100 else []
    return f"count_targets({', '.join(written)})"


def _is_block(sharded: ShardedGraph, segment: SegmentType) -> bool:
    return any(call.type == segment.name and call.module for call in sharded.graph.calls)


def _resting(sharded: ShardedGraph, segment: SegmentType, call: SegmentCall) -> dict[str, Layout]:
    """Layout at rest of every parameter of a segment, by value."""
    canonical = {p.name: p.alias_of or p.name for p in sharded.graph.parameters}
    found = {}
    for parameter in segment.parameters:
        name = full_name(call.module, parameter.path)
        found[parameter.value] = sharded.parameters[canonical.get(name, name)]
    return found


def _block(sharded: ShardedGraph, segment: SegmentType) -> _Function:
    calls = [call for call in sharded.graph.calls if call.type == segment.name]
    scope = Scope(sharded, taken=_reserved(sharded))
    arguments = {name: scope.fresh(name) for name in segment.inputs}
    device = f"{next(iter(arguments.values()))}.device" if arguments else 'torch.device("cpu")'
    writer = SegmentWriter(scope, segment, "self", device)
    outputs = writer.write(arguments, _resting(sharded, segment, calls[0]))
    modules = calls[0].module if len(calls) == 1 else f"{calls[0].module} … {calls[-1].module}"
    return _Function(segment.name, modules, tuple(arguments.values()), scope, tuple(outputs.values()))


def _reserved(sharded: ShardedGraph) -> set[str]:
    """Names that a forward must not use for its own values."""
    runtime = "all_gather all_reduce all_to_all attention cross_entropy embedding local reduce_scatter shard"
    others = "self torch nn F float sum_gradient share_gradient block"
    return {*sharded.axis_names, *runtime.split(), *others.split()}


class _Root:
    """Writes the root's forward: segments of the root in line, blocks as calls, conversions between them."""

    def __init__(self, sharded: ShardedGraph) -> None:
        self.sharded = sharded
        self.graph = sharded.graph
        self.types = {segment.name: segment for segment in sharded.graph.types}
        self.scope = Scope(sharded, taken=_reserved(sharded))
        self.versions: dict[tuple[str, Layout], str] = {}
        self.home: dict[str, Layout] = {}
        self.device = ""

    def function(self) -> _Function:
        arguments = [self.bind_input(graph_input) for graph_input in self.graph.inputs]
        self.write_calls()
        plain = (REPLICATE,) * len(self.sharded.axes)
        outputs = tuple(self._version(name, plain) for name in self.graph.outputs)
        return _Function("Root", "the whole model", tuple(arguments), self.scope, outputs)

    def bind_input(self, graph_input: GraphInput) -> str:
        """The name of an argument of the forward."""
        name = self.scope.fresh(graph_input.value.name)
        self._bind(graph_input.value.name, self.sharded.inputs[graph_input.value.name], name)
        self.device = self.device or f"{name}.device"
        return name

    def as_read(self, output: str, inside: tuple[str, str], layout: Layout) -> str:
        """A segment's output as that segment itself reads it, where it is called ``inside``."""
        source = self.home[output]
        expr = self.versions[output, source]
        if layout == source:
            return expr
        return self.scope.write_conversion(inside, self.graph.values[output].shape, source, layout, expr)

    def write_calls(self) -> None:
        """Write all calls of the graph."""
        self.device = self.device or 'torch.device("cpu")'
        calls = list(self.graph.calls)
        while calls:
            run = self._run(calls)
            if len(run) > 1:
                self._loop(run)
            elif calls[0].module:
                self._call(calls[0])
            else:
                self._inline(calls[0])
            del calls[: len(run)]

    def _bind(self, value: str, layout: Layout, expr: str) -> None:
        self.versions[value, layout] = expr
        self.home[value] = layout

    def _version(self, value: str, wanted: Layout) -> str:
        if (value, wanted) not in self.versions:
            source = self.home[value]
            shape = self.graph.values[value].shape
            self.versions[value, wanted] = self.scope.write_conversion(
                ("", value), shape, source, wanted, self.versions[value, source]
            )
        return self.versions[value, wanted]

    def _arguments(self, call: SegmentCall) -> dict[str, str]:
        """Expression of every input of a call, converted to the layout it takes."""
        return {
            inside: self._version(outside, self.sharded.boundaries[call.type, inside])
            for outside, inside in zip(call.arguments, self.types[call.type].inputs, strict=True)
        }

    def _result_layout(self, call: SegmentCall, position: int) -> Layout:
        """The layout in which a segment leaves an output."""
        segment = self.types[call.type]
        name = segment.outputs[position]
        if name in segment.inputs:
            return self.sharded.boundaries[segment.name, name]
        for operator in segment.operators:
            if name in operator.results:
                return self.sharded.strategies[segment.name, operator.name].results[
                    operator.results.index(name)
                ]
        return (REPLICATE,) * len(self.sharded.axes)

    def _inline(self, call: SegmentCall) -> None:
        segment = self.types[call.type]
        writer = SegmentWriter(self.scope, segment, "self", self.device)
        outputs = writer.write(self._arguments(call), _resting(self.sharded, segment, call))
        for position, (outside, inside) in enumerate(zip(call.results, segment.outputs, strict=True)):
            self._bind(outside, self._result_layout(call, position), outputs[inside])

    def _call(self, call: SegmentCall) -> None:
        arguments = ", ".join(self._arguments(call).values())
        names = [self.scope.fresh(name) for name in call.results]
        self.scope.lines.append(
            Line(f"{', '.join(names)} = {attribute('self', call.module)}({arguments})", self._note(call))
        )
        for position, (outside, name) in enumerate(zip(call.results, names, strict=True)):
            self._bind(outside, self._result_layout(call, position), name)

    def _note(self, call: SegmentCall) -> str:
        shapes = []
        for position, name in enumerate(self.types[call.type].outputs):
            value = self.types[call.type].values[name]
            shapes.append(
                str(list(local_shape(value.shape, self._result_layout(call, position), self.sharded.sizes)))
            )
        return ", ".join(shapes)

    def _run(self, calls: list[SegmentCall]) -> list[SegmentCall]:
        """The longest start of ``calls`` that one loop over a ModuleList can make."""
        run = [calls[0]]
        if calls[0].module:
            for call in calls[1:]:
                if not self._follows(run[-1], call, run[0]):
                    break
                run.append(call)
        return run

    def _follows(self, before: SegmentCall, call: SegmentCall, first: SegmentCall) -> bool:
        """True when ``call`` is the next block, fed by ``before`` alone and by what the first one got."""
        if call.type != before.type or len(call.results) != 1 or not _is_next(before.module, call.module):
            return False
        carried = 0
        for position, (mine, its) in enumerate(zip(call.arguments, first.arguments, strict=True)):
            if mine == before.results[0]:
                inside = self.types[call.type].inputs[position]
                if self.sharded.boundaries[call.type, inside] != self._result_layout(before, 0):
                    return False
                carried += 1
                continue
            if mine != its:
                return False
        return carried == 1 and self._readers(before.results[0]) == 1

    def _readers(self, value: str) -> int:
        return sum(name == value for call in self.graph.calls for name in call.arguments) + sum(
            name == value for name in self.graph.outputs
        )

    def _loop(self, run: list[SegmentCall]) -> None:
        first, second = run[0], run[1]
        arguments = self._arguments(first)
        inputs = self.types[first.type].inputs
        place = next(p for p, name in enumerate(second.arguments) if name == first.results[0])
        start = arguments[inputs[place]]
        is_free = start.isidentifier() and self._readers(first.arguments[place]) == 1
        carried = start if is_free else self.scope.fresh(inputs[place])
        arguments[inputs[place]] = carried
        parent, _, index = first.module.rpartition(".")
        blocks = attribute("self", parent)
        last = int(run[-1].module.rpartition(".")[2])
        total = self._length(parent)
        window = "" if int(index) == 0 and last == total - 1 else f"[{index}:{last + 1}]"
        if carried != start:
            self.scope.lines.append(Line(f"{carried} = {start}"))
        self.scope.lines.append(Line(f"for block in {blocks}{window}:"))
        self.scope.lines.append(
            Line(f"{carried} = block({', '.join(arguments.values())})", self._note(first), indent=1)
        )
        self._bind(run[-1].results[0], self._result_layout(run[-1], 0), carried)

    def _length(self, parent: str) -> int:
        """Blocks of a ModuleList, as far as the parameters tell."""
        indices = {
            int(name.removeprefix(parent + ".").split(".")[0])
            for name in (
                *(p.name for p in self.graph.parameters),
                *(call.module + ".x" for call in self.graph.calls),
            )
            if name.startswith(parent + ".") and name.removeprefix(parent + ".").split(".")[0].isdigit()
        }
        return max(indices, default=-1) + 1


def _is_next(before: str, after: str) -> bool:
    parent, _, index = before.rpartition(".")
    other, _, following = after.rpartition(".")
    return parent == other and index.isdigit() and following.isdigit() and int(following) == int(index) + 1


def _header(title: str, sharded: ShardedGraph) -> str:
    axes = ", ".join(f"{axis.name} {axis.size}" for axis in sharded.axes) or "one device"
    safe = comment(title).replace("\\", "/").replace('"""', "'''")
    return _HEADER.format(title=safe, axes=axes)


_HEADER = '''"""{title}

Mesh: {axes}. Shapes in comments are local: what one rank holds. Collectives are explicit and
carry their gradient's collective with them. Made by autopar; change the plan rather than this file.
"""
'''

_IMPORTS = """from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from autopar.runtime import (
{names})
"""


def _imports(functions: Iterable[_Function]) -> str:
    used = set().union(*(function.scope.runtime for function in functions))
    names = sorted({*used, *_BUILD_NAMES}, key=lambda name: (not name[0].isupper(), name))
    return _IMPORTS.format(names="".join(f"    {name},\n" for name in names))


def _class(function: _Function) -> str:
    arguments = "".join(f", {name}" for name in function.arguments)
    axes = [name for name in function.scope.sharded.axis_names if name in function.scope.axes]
    body = [f'        {name} = self.axes["{name}"]' for name in axes]
    body += layout_lines(function.scope.lines, "        ")
    result = ", ".join(function.results)
    return (
        f"\nclass {identifier(function.name)}(nn.Module):\n"
        f'    """{comment(function.note)}"""\n\n'
        f"    def forward(self{arguments}):\n" + "\n".join([*body, f"        return {result}"]) + "\n"
    )


def _counts(function: _Function) -> str:
    """The function that the runtime calls on each microbatch's inputs before the first one runs."""
    axes = [name for name in function.scope.sharded.axis_names if name in function.scope.axes]
    body = [f'    {name} = axes["{name}"]' for name in axes]
    body += layout_lines(function.scope.lines, "    ")
    result = ", ".join(function.results) + ("," if len(function.results) == 1 else "")
    return (
        f"\ndef {function.name}(axes, {', '.join(function.arguments)}):\n"
        '    """Targets of one microbatch, on all ranks, that a loss does not ignore."""\n'
        + "\n".join([*body, f"    return ({result})"])
        + "\n"
    )


_BUILD_NAMES = (
    "Input",
    "Parameter",
    "Running",
    "bind",
    "distribute",
    "init_mesh",
    "initialize",
    "keep_identity",
    "orders_at_rest",
    "parameter_tree",
    "seed_ranks",
    "shard_data",
    "speak_plain_state",
    "train_on_random_data",
)
"""Functions of ``autopar.runtime`` that every program's ``build`` calls."""

_BUILD = '''
def build(module: nn.Module | None = None, *, compile: bool = False, seed: int = 0) -> Running:
    """Make `module` (or new parameters under the same names) run this program on the running processes."""
    mesh = init_mesh(MESH)
    is_new = module is None
    if is_new:
        module = parameter_tree(PARAMETERS, {{"": Root, **BLOCKS}})
        keep_identity(module)
    distribute(module, PARAMETERS, mesh, MODEL_AXES)
    forwards = {{"": Root.forward, **{{path: kind.forward for path, kind in BLOCKS.items()}}}}
    bind(module, forwards, mesh.axes, compile_forwards=compile{recompute})
    shard_data(
        module,
        BLOCKS,
        mesh,
        replicate_axes=REPLICATE_AXES,
        shard_axes=SHARD_AXES,
        compute_dtype=COMPUTE_DTYPE,{zero}
    )
    if is_new:
        module.to_empty(device=mesh.device)
        initialize(module, seed)
    orders = orders_at_rest(PARAMETERS, mesh, MODEL_AXES)
    speak_plain_state(module, orders)
    seed_ranks(seed, mesh.axes, RANDOM_AXES)
    return Running(module, mesh, INPUTS, OUTPUTS, orders{microbatches})


if __name__ == "__main__":
    train_on_random_data(build())
'''


def _build(sharded: ShardedGraph) -> str:
    """Which block runs where, and the one visible order of what is done to the module."""
    blocks = {call.module: call.type for call in sharded.graph.calls if call.module}
    (stage,) = sharded.stages
    has_shards = any(axis.kind == "shard" for axis in sharded.axes)
    microbatches = sharded.graph.microbatches
    counts = ", counts=count_targets_of" if microbatches.counted else ""
    build = _BUILD.format(
        recompute=", recompute=dict.fromkeys(BLOCKS, RECOMPUTE)" if stage.recompute != "none" else "",
        zero="\n        zero=ZERO," if has_shards else "",
        microbatches=f", MICROBATCHES, JOINS{counts}" if microbatches.count > 1 else "",
    )
    return f"\n{blocks_table(list(blocks.items()))}\n{build}"
