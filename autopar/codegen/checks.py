"""What must hang together in a sharded graph before a program is written: a plan may have been edited by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from autopar.capture.graph import Graph
from autopar.errors import PlanError
from autopar.shardings.sharded import ShardedGraph

__all__ = ["check_sharded"]

_CROSS_ENTROPY = "aten.cross_entropy_loss.default"


def check_sharded(sharded: ShardedGraph) -> None:
    """Raise ``PlanError`` naming the first value, input, output or count that does not fit the others."""
    graph = sharded.graph
    problems = (_made_twice, _other_shapes, _inputs, _joins, _counts)
    for problem in chain.from_iterable(check(graph) for check in problems):
        raise PlanError(f"{problem} Restore it or plan again.")


def _made_twice(graph: Graph) -> Iterator[str]:
    made: set[str] = set()
    for call in graph.calls:
        for name in call.results:
            if name in made:
                yield f"two segments make '{name}': the second is {call.type} at '{call.module}'."
            made.add(name)


def _other_shapes(graph: Graph) -> Iterator[str]:
    """Values between segments that have another shape or dtype inside; a slice of the batch is as long everywhere."""
    outside = {**graph.values, **{i.value.name: i.value for i in graph.inputs}}
    types = {segment.name: segment for segment in graph.types}
    for call in graph.calls:
        segment = types[call.type]
        pairs = (*zip(call.arguments, segment.inputs), *zip(call.results, segment.outputs))  # noqa: B905
        for name, inside in pairs:
            whole, part = outside[name], segment.values[inside]
            if (whole.shape, whole.dtype) != (part.shape, part.dtype):
                count = graph.microbatches.count
                yield (
                    f"{call.type} at '{call.module}' has '{inside}' as {part.dtype}{list(part.shape)}, but with "
                    f"{count} microbatches '{name}' is {whole.dtype}{list(whole.shape)}: the segments are written for "
                    "another number of microbatches, which cannot be edited."
                )


def _inputs(graph: Graph) -> Iterator[str]:
    """Inputs that are listed otherwise among the values between segments."""
    for value in (i.value for i in graph.inputs):
        listed = graph.values.get(value.name, value)
        if (listed.shape, listed.dtype) != (value.shape, value.dtype):
            yield (
                f"outer_values has '{value.name}' as {listed.dtype}{list(listed.shape)}, but one microbatch of that "
                f"input is {value.dtype}{list(value.shape)}."
            )


def _joins(graph: Graph) -> Iterator[str]:
    joins = graph.microbatches.joins
    if len(joins) != len(graph.outputs) and (joins or graph.microbatches.count > 1):
        yield f"the schedule says of {len(joins)} outputs how slices join, the model has {len(graph.outputs)}."
    for join, output in zip(joins, graph.outputs, strict=False):
        how, _, dim = join.partition(" ")
        rank = len(graph.values[output].shape)
        if how == "cat" and int(dim) >= rank:
            yield f"the schedule joins slices of the output '{output}' along dim {dim}, but it has {rank} dims."


def _counts(graph: Graph) -> Iterator[str]:
    """Counts of targets, and inputs that the caller cannot pass."""
    inputs = {i.value.name for i in graph.inputs}
    entropies = {
        f"{segment.name}.{operator.name}"
        for segment in graph.types
        for operator in segment.operators
        if operator.target == _CROSS_ENTROPY
    }
    for name, where in graph.microbatches.counted.items():
        if where not in entropies:
            yield f"the schedule counts targets of '{where}', which is no cross-entropy of the plan."
        if name not in inputs:
            yield f"the schedule counts targets as '{name}', which is no input of the plan."
    paths = {i.value.name: i.path for i in graph.inputs}
    for name, where in graph.microbatches.counted.items():
        if paths.get(name, f"count:{where}") != f"count:{where}":
            yield f"the schedule counts '{name}' as the targets of '{where}', its input has the path '{paths[name]}'."
    for name in graph.microbatches.dims.keys() - inputs:
        yield f"the schedule cuts '{name}', which is no input of the plan."
    for i in graph.inputs:
        if i.path.startswith("count:") and i.value.name not in graph.microbatches.counted:
            yield f"the schedule does not count '{i.value.name}', which segments read."
