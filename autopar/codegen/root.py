"""The forward of the root, or of one stage of it: segments of the root in line, blocks as calls."""

from __future__ import annotations

from autopar.capture.graph import Graph, GraphInput, SegmentCall, SegmentType, Value, full_name
from autopar.codegen.function import Function
from autopar.codegen.lines import Line
from autopar.codegen.segment import Scope, SegmentWriter
from autopar.codegen.text import attribute
from autopar.shardings.placement import REPLICATE, Layout, local_shape
from autopar.shardings.sharded import ShardedGraph

__all__ = ["RootWriter", "block_function", "head_function", "is_block"]


def is_block(sharded: ShardedGraph, segment: SegmentType) -> bool:
    """True for a segment that modules below the root run."""
    return any(call.type == segment.name and call.module for call in sharded.graph.calls)


def block_function(sharded: ShardedGraph, segment: SegmentType) -> Function:
    """The forward of a block type."""
    calls = [call for call in sharded.graph.calls if call.type == segment.name]
    modules = calls[0].module if len(calls) == 1 else f"{calls[0].module} … {calls[-1].module}"
    return _segment_function(sharded, segment, calls[0], segment.name, modules)


def head_function(sharded: ShardedGraph) -> Function | None:
    """What the root does after the last block, its loss as a rule; None where no block comes before the end."""
    call = _head(sharded.graph)
    if call is None:
        return None
    segment = next(segment for segment in sharded.graph.types if segment.name == call.type)
    taken = {segment.name for segment in sharded.graph.types}
    return _segment_function(
        sharded, segment, call, "Head" if "Head" not in taken else call.type, "what follows the last block"
    )


def _head(graph: Graph) -> SegmentCall | None:
    """The one call of the root that follows the last block."""
    calls = graph.calls
    is_last = len(calls) > 1 and calls[-2].module and not calls[-1].module and calls[-1].results
    return calls[-1] if is_last else None


def _segment_function(
    sharded: ShardedGraph, segment: SegmentType, call: SegmentCall, name: str, note: str
) -> Function:
    """The forward of one segment on its own."""
    scope = Scope(sharded, taken=_reserved(sharded))
    arguments = {name: scope.fresh(name) for name in segment.inputs}
    device = f"{next(iter(arguments.values()))}.device" if arguments else 'torch.device("cpu")'
    writer = SegmentWriter(scope, segment, "self", device)
    outputs = writer.write(arguments, _resting(sharded, segment, call))
    return Function(name, note, tuple(arguments.values()), scope, tuple(outputs.values()))


class RootWriter:
    """Writes the root's forward: segments of the root in line, blocks as calls, conversions between them."""

    def __init__(self, sharded: ShardedGraph, whole: Graph | None = None) -> None:
        self.sharded = sharded
        self.graph = sharded.graph
        self.whole = whole or sharded.graph
        """The graph of all stages, where ``sharded`` has the calls of one."""
        self.types = {segment.name: segment for segment in sharded.graph.types}
        self.scope = Scope(sharded, taken=_reserved(sharded))
        self.versions: dict[tuple[str, Layout], str] = {}
        self.home: dict[str, Layout] = {}
        self.device = ""

    def function(self) -> Function:
        arguments = [self.bind_input(graph_input) for graph_input in self.graph.inputs]
        self.write_calls()
        plain = (REPLICATE,) * len(self.sharded.axes)
        outputs = tuple(self.as_output(name, plain) for name in self.graph.outputs)
        return Function("Root", "the whole model", tuple(arguments), self.scope, outputs)

    def bind_input(self, graph_input: GraphInput) -> str:
        """The name of an argument of the forward."""
        name = self.scope.fresh(graph_input.value.name)
        self._bind(graph_input.value.name, self.sharded.inputs[graph_input.value.name], name)
        self.device = self.device or f"{name}.device"
        return name

    def bind_received(self, value: Value, layout: Layout) -> str:
        """The name of an argument that the stage before hands over."""
        name = self.scope.fresh(value.name)
        self._bind(value.name, layout, name)
        self.device = self.device or f"{name}.device"
        return name

    def as_output(self, value: str, layout: Layout) -> str:
        """The expression of a value between segments in a layout."""
        return self._version(value, layout)

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
                self._call(calls[0], attribute("self", calls[0].module))
            elif calls[0] is _head(self.whole):
                self._call(calls[0], "self.run_head")
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
        return self.sharded.result_layout(self.types[call.type], position)

    def _inline(self, call: SegmentCall) -> None:
        segment = self.types[call.type]
        writer = SegmentWriter(self.scope, segment, "self", self.device)
        outputs = writer.write(self._arguments(call), _resting(self.sharded, segment, call))
        for position, (outside, inside) in enumerate(zip(call.results, segment.outputs, strict=True)):
            self._bind(outside, self._result_layout(call, position), outputs[inside])

    def _call(self, call: SegmentCall, function: str) -> None:
        arguments = ", ".join(self._arguments(call).values())
        names = [self.scope.fresh(name) for name in call.results]
        self.scope.lines.append(Line(f"{', '.join(names)} = {function}({arguments})", self._note(call)))
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
        return sum(name == value for call in self.whole.calls for name in call.arguments) + sum(
            name == value for name in self.whole.outputs
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
                *(p.name for p in self.whole.parameters),
                *(call.module + ".x" for call in self.whole.calls),
            )
            if name.startswith(parent + ".") and name.removeprefix(parent + ".").split(".")[0].isdigit()
        }
        return max(indices, default=-1) + 1


def _is_next(before: str, after: str) -> bool:
    parent, _, index = before.rpartition(".")
    other, _, following = after.rpartition(".")
    return parent == other and index.isdigit() and following.isdigit() and int(following) == int(index) + 1


def _resting(sharded: ShardedGraph, segment: SegmentType, call: SegmentCall) -> dict[str, Layout]:
    """Layout at rest of every parameter of a segment, by value."""
    canonical = {p.name: p.alias_of or p.name for p in sharded.graph.parameters}
    found = {}
    for parameter in segment.parameters:
        name = full_name(call.module, parameter.path)
        found[parameter.value] = sharded.parameters[canonical.get(name, name)]
    return found


def _reserved(sharded: ShardedGraph) -> set[str]:
    """Names that a forward must not use for its own values."""
    runtime = "all_gather all_reduce all_to_all attention cross_entropy embedding local reduce_scatter shard"
    others = "self torch nn F float sum_gradient share_gradient block"
    return {*sharded.axis_names, *runtime.split(), *others.split()}
