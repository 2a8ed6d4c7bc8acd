"""The root's forward cut into stages: what each one reads of the batch, receives, and sends on.

A value that a later stage needs travels through all stages between, in the layout in which it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.capture.graph import Graph, SegmentCall, Value
from autopar.codegen.function import Function
from autopar.codegen.root import RootWriter
from autopar.codegen.text import identifier, quoted
from autopar.shardings.placement import REPLICATE, Layout, local_shape
from autopar.shardings.sharded import ShardedGraph, Stage

__all__ = ["StageFunction", "stage_functions", "stages_table"]


@dataclass(frozen=True, slots=True)
class StageFunction:
    """The forward of one stage."""

    function: Function
    reads: tuple[int, ...]
    """Positions among the graph's inputs."""
    receives: tuple[tuple[Value, Layout], ...]
    sends: tuple[tuple[Value, Layout], ...]


def stage_functions(sharded: ShardedGraph) -> list[StageFunction]:
    """One function per stage, in order."""
    found: list[StageFunction] = []
    arriving: tuple[tuple[Value, Layout], ...] = ()
    for position, stage in enumerate(sharded.stages):
        found.append(_function(sharded, position, stage, arriving))
        arriving = found[-1].sends
    return found


def _calls(graph: Graph, stage: Stage) -> Sequence[SegmentCall]:
    return graph.calls[stage.calls[0] : stage.calls[1] + 1]


def _function(
    sharded: ShardedGraph, position: int, stage: Stage, arriving: tuple[tuple[Value, Layout], ...]
) -> StageFunction:
    graph, calls = sharded.graph, _calls(sharded.graph, stage)
    root = RootWriter(replace(sharded, graph=replace(graph, calls=tuple(calls))), whole=graph)
    received = tuple(root.bind_received(value, layout) for value, layout in arriving)
    is_last = position == len(sharded.stages) - 1
    needed = {name for call in calls for name in call.arguments} | set(graph.outputs if is_last else ())
    reads = tuple(place for place, i in enumerate(graph.inputs) if i.value.name in needed)
    read = tuple(root.bind_input(graph.inputs[place]) for place in reads)
    root.write_calls()
    if is_last:
        plain = (REPLICATE,) * len(sharded.axes)
        results = tuple(root.as_output(name, plain) for name in graph.outputs)
        sends: tuple[tuple[Value, Layout], ...] = ()
    else:
        leaving = _leaving(graph, stage)
        sends = tuple((graph.values[name], root.home[name]) for name in leaving)
        results = tuple(root.as_output(name, root.home[name]) for name in leaving)
    function = Function(f"Stage{position}", _note(calls), (*received, *read), root.scope, results)
    return StageFunction(function, reads, arriving, sends)


def _leaving(graph: Graph, stage: Stage) -> list[str]:
    """Values made up to this stage that a later one reads, in order of their making."""
    last = stage.calls[1]
    later = {name for call in graph.calls[last + 1 :] for name in call.arguments} | set(graph.outputs)
    made = (name for call in graph.calls[: last + 1] for name in call.results)
    return [name for name in dict.fromkeys(made) if name in later]


def _note(calls: Sequence[SegmentCall]) -> str:
    """Which part of the model a stage runs."""
    modules = [call.module for call in calls if call.module]
    if not modules:
        return "operators of the root"
    return modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"


def stages_table(sharded: ShardedGraph, stages: Sequence[StageFunction]) -> str:
    """``STAGES`` and ``SCHEDULE``."""
    lines = ["", "STAGES = ["]
    for stage in stages:
        details = {
            "reads": _tuple(map(str, stage.reads)),
            "receives": _wires(stage.receives, sharded),
            "sends": _wires(stage.sends, sharded),
        }
        lines += ["    Stage(", f"        {identifier(stage.function.name)}.forward,"]
        lines += [f"        {name}={text}," for name, text in details.items() if text != "()"]
        lines += ["    ),"]
    lines += ["]", f"SCHEDULE = {quoted(sharded.schedule)}"]
    meaning = "What each stage reads of the batch, receives and sends on; and the order in which they run."
    return "\n".join([*lines, f'"""{meaning}"""']) + "\n"


def _wires(wires: Sequence[tuple[Value, Layout]], sharded: ShardedGraph) -> str:
    return _tuple(
        f"Wire({local_shape(value.shape, layout, sharded.sizes)}, torch.{identifier(value.dtype)}, "
        f"{value.requires_grad})"
        for value, layout in wires
    )


def _tuple(items: object) -> str:
    listed = list(items)  # type: ignore[call-overload]
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"
