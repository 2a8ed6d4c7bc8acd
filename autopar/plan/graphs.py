"""The graph that a plan holds, in the graph's own types."""

from __future__ import annotations

import keyword
import re
from dataclasses import replace

from autopar.capture.graph import (
    Constant,
    Graph,
    GraphInput,
    GraphParameter,
    Microbatches,
    Operator,
    Parameter,
    SegmentCall,
    SegmentType,
    Value,
)
from autopar.errors import PlanError
from autopar.plan.schema import OperatorEntry, Plan, ScheduleEntry, SegmentTypeEntry
from autopar.plan.text import read_argument, read_tensor
from autopar.shardings.calls import references

__all__ = ["graph_of"]

_TARGET = re.compile(r"\w+(\.\w+){2}")
"""``aten.linear.default``"""


def graph_of(plan: Plan) -> Graph:
    """The captured graph (biases apart from their products) that a plan was made for.

    Raises ``PlanError`` naming the segment or operator that does not hang together.
    """
    microbatches = _microbatches(plan.schedule)
    types = tuple(_segment(entry) for entry in plan.segments)
    calls = tuple(
        SegmentCall(call.type, call.module, tuple(call.arguments), tuple(call.results))
        for stage in plan.stages
        for call in stage.segments
    )
    graph = Graph(
        name=plan.model.name,
        inputs=tuple(GraphInput(_slice(read_tensor(i.name, i.tensor), plan), i.path) for i in plan.inputs),
        parameters=tuple(
            GraphParameter(
                p.name,
                (value := read_tensor(p.name, p.tensor)).shape,
                value.dtype,
                value.requires_grad,
                p.kind != "parameter",
                p.kind != "temporary buffer",
                p.alias_of,
            )
            for p in plan.parameters
        ),
        types=types,
        calls=calls,
        outputs=tuple(plan.outputs),
        values={name: read_tensor(name, text) for name, text in plan.outer_values.items()},
        output_tree=plan.model.output_tree,
        notes=tuple(plan.notes),
        microbatches=microbatches,
    )
    _check(graph)
    return graph


def _microbatches(schedule: ScheduleEntry) -> Microbatches:
    if schedule.microbatches < 1:
        raise PlanError(f"the schedule has {schedule.microbatches} microbatches: it needs at least 1.")
    for join in schedule.joins:
        if not re.fullmatch(r"sum|same|cat \d+", join):
            raise PlanError(f"the schedule joins outputs by '{join}': legal are sum, same and 'cat DIM'.")
    return Microbatches(
        schedule.microbatches, dict(schedule.dims), tuple(schedule.joins), dict(schedule.counted)
    )


def _slice(value: Value, plan: Plan) -> Value:
    """One microbatch of an input."""
    dim, count = plan.schedule.dims.get(value.name), plan.schedule.microbatches
    if dim is None:
        return value
    if not 0 <= dim < len(value.shape) or value.shape[dim] % count:
        raise PlanError(
            f"input {value.name} {list(value.shape)} cannot be cut along dim {dim} into {count} microbatches."
        )
    return replace(value, shape=(*value.shape[:dim], value.shape[dim] // count, *value.shape[dim + 1 :]))


def _segment(entry: SegmentTypeEntry) -> SegmentType:
    values = {name: read_tensor(name, text) for name, text in entry.values.items()}
    buffers = set(entry.buffers)
    return SegmentType(
        name=entry.name,
        inputs=tuple(entry.inputs),
        parameters=tuple(
            Parameter(value, path, value in buffers) for value, path in entry.parameters.items()
        ),
        constants=tuple(Constant(value, data) for value, data in entry.constants.items()),
        operators=tuple(_operator(operator, entry.name, values) for operator in entry.operators),
        outputs=tuple(entry.outputs),
        values=values,
    )


def _operator(entry: OperatorEntry, segment: str, values: dict[str, Value]) -> Operator:
    where = f"{segment}.{entry.name}"
    if not _TARGET.fullmatch(entry.call):
        raise PlanError(
            f"operator {where}: '{entry.call}' is no call; write library.operator.overload, such as "
            "aten.linear.default."
        )
    operator = Operator(
        entry.name,
        entry.call,
        tuple(read_argument(where, item) for item in entry.arguments),
        tuple((key, read_argument(where, item)) for key, item in entry.keywords.items()),
        tuple(entry.results),
        entry.source,
        entry.module,
    )
    for key in entry.keywords:
        if not (key.isidentifier() and key.isascii()) or keyword.iskeyword(key):
            raise PlanError(f"operator {where}: {key!r} is no name of an argument. Plan again.")
    for name in operator.results:
        if name is not None and name not in values:
            raise PlanError(
                f"operator {where} makes '{name}', which has no entry under values. Restore it or plan again."
            )
    return operator


def _check(graph: Graph) -> None:
    """Everything that is read exists, and was made before."""
    types = {segment.name: segment for segment in graph.types}
    for segment in graph.types:
        known = {
            *segment.inputs,
            *(p.value for p in segment.parameters),
            *(c.value for c in segment.constants),
        }
        for name in sorted(known - segment.values.keys()):
            raise PlanError(
                f"segment {segment.name} has no entry '{name}' under values. Restore it or plan again."
            )
        for operator in segment.operators:
            for name in references(operator):
                if name not in known or name not in segment.values:
                    raise PlanError(
                        f"operator {segment.name}.{operator.name} reads '{name}', "
                        "which nothing before it makes."
                    )
            known.update(name for name in operator.results if name is not None)
        for name in (*segment.inputs, *segment.outputs):
            if name not in known or name not in segment.values:
                raise PlanError(f"segment {segment.name} hands over '{name}', which nothing in it makes.")
    made = {graph_input.value.name for graph_input in graph.inputs}
    for name in sorted(made - graph.values.keys()):
        raise PlanError(f"outer_values has no entry '{name}', which is an input of the model.")
    for call in graph.calls:
        if call.type not in types:
            raise PlanError(f"a stage calls the segment '{call.type}', which the plan does not describe.")
        segment = types[call.type]
        if len(call.arguments) != len(segment.inputs) or len(call.results) != len(segment.outputs):
            raise PlanError(f"the call of {call.type} at '{call.module}' passes the wrong number of values.")
        for name in call.arguments:
            if name not in made or (
                name not in graph.values and not any(name == i.value.name for i in graph.inputs)
            ):
                raise PlanError(
                    f"the call of {call.type} at '{call.module}' reads '{name}', "
                    "which nothing before it makes."
                )
        for name in call.results:
            if name not in graph.values:
                raise PlanError(f"outer_values has no entry '{name}', which {call.type} makes.")
        made.update(call.results)
    for name in graph.outputs:
        if name not in made:
            raise PlanError(f"the plan's output '{name}' is made by nothing.")
