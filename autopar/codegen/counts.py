"""The function that counts targets before the first microbatch, where losses divide by their number."""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.upstream import counted_targets, upstream
from autopar.codegen.function import Function
from autopar.codegen.lines import layout_lines
from autopar.codegen.root import RootWriter
from autopar.codegen.text import literal
from autopar.shardings.calls import Call
from autopar.shardings.sharded import ShardedGraph

__all__ = ["counting_function", "counting_source"]


def counting_function(sharded: ShardedGraph) -> list[Function]:
    """The function that counts targets before the first microbatch, where losses divide by their number."""
    counted = sharded.graph.microbatches.counted
    places = counted_targets(sharded.graph)
    part = upstream(sharded.graph, places)
    if not counted or part is None:
        return []
    root = RootWriter(replace(sharded, graph=part))
    arguments = [root.bind_input(i) for i in sharded.graph.inputs if i.value.name not in counted]
    root.write_calls()
    results = []
    for where, output in zip(counted.values(), part.outputs, strict=True):
        results.append(_count(sharded, where, root, output))
    return [Function("count_targets_of", "", tuple(arguments), root.scope, tuple(results))]


def _count(sharded: ShardedGraph, where: str, root: RootWriter, output: str) -> str:
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


def counting_source(function: Function) -> str:
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
