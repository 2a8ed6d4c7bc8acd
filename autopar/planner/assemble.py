"""A search's result as a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from autopar.capture.graph import Graph, Microbatches, SegmentType, Value
from autopar.plan.schema import (
    FORMAT,
    CandidateEntry,
    ClusterEntry,
    ConversionEntry,
    InputEntry,
    MemoryEntry,
    MeshAxisEntry,
    ModelEntry,
    OperatorEntry,
    ParameterEntry,
    Plan,
    PredictedEntry,
    ScheduleEntry,
    SegmentCallEntry,
    SegmentTypeEntry,
    SolverEntry,
    StageEntry,
    TrainingEntry,
)
from autopar.plan.text import write_argument, write_tensor
from autopar.planner.execution import Execution
from autopar.planner.host import HostTime, step_range_s
from autopar.planner.memory import Memory
from autopar.planner.realize import Realized
from autopar.planner.staging import Staged
from autopar.planner.work import works
from autopar.shardings.calls import Call
from autopar.shardings.placement import REPLICATE, Layout, format_layout
from autopar.shardings.rules import loops_of
from autopar.shardings.sharded import Conversion, NamedAxis, ShardedGraph
from cost_models.cluster import Cluster

if TYPE_CHECKING:
    from autopar.planner.estimate import Estimate
    from autopar.planner.search import Found, Tried

__all__ = ["Question", "conversion_entries", "make_plan", "predicted_entry", "segment_entries"]


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, as far as the plan repeats it."""

    source: str
    """MODEL as the user wrote it; empty for a module handed in."""
    fingerprint: str
    cluster: Cluster
    memory_limit_bytes: int
    precision: str
    optimizer: str
    pins: str
    version: str
    compile: bool = False
    """The program goes through ``torch.compile``."""
    profile: tuple[str, ...] = ()
    """The cluster's profile, where its name does not say it all."""


def make_plan(graph: Graph, question: Question, found: Found) -> Plan:
    """The plan that a search found. ``graph`` is the captured one."""
    best = found.best
    realized = best.realized
    sharded = realized.sharded
    flops = _model_flops(sharded.graph)
    training = _training(graph, question)
    return Plan(
        format=FORMAT,
        autopar=question.version,
        model=ModelEntry(
            graph.name,
            question.source,
            question.fingerprint,
            _parameter_count(graph),
            flops,
            graph.output_tree,
        ),
        cluster=ClusterEntry(
            question.cluster.name,
            question.cluster.device.name,
            question.cluster.nodes,
            question.cluster.devices_per_node,
            question.memory_limit_bytes,
            list(question.profile),
        ),
        training=training,
        inputs=[
            InputEntry(
                i.value.name,
                i.path,
                write_tensor(_whole(i.value, sharded.graph.microbatches)),
                _layout(sharded.inputs[i.value.name], sharded),
            )
            for i in sharded.graph.inputs
        ],
        mesh=_mesh(sharded),
        stages=[_stage(sharded, position) for position in range(len(sharded.stages))],
        outputs=list(sharded.graph.outputs),
        outer_values={name: write_tensor(value) for name, value in sharded.graph.values.items()},
        segments=segment_entries(realized),
        parameters=_parameters(sharded),
        conversions=conversion_entries(realized),
        schedule=_schedule(sharded),
        predicted=predicted_entry(realized, best.staged or best.step_s, training, flops, question.cluster),
        solver=_solver(found),
        notes=[*graph.notes, *_unruled(sharded.graph)],
        pins=question.pins,
    )


def _mesh(sharded: ShardedGraph) -> list[MeshAxisEntry]:
    """The pipeline's axis, outermost, and those of each stage's submesh."""
    stages = [MeshAxisEntry("pp", sharded.stage_ranks, "stage")] if sharded.stage_ranks > 1 else []
    return [*stages, *(MeshAxisEntry(axis.name, axis.size, axis.kind) for axis in sharded.axes)]


def _schedule(sharded: ShardedGraph) -> ScheduleEntry:
    microbatches = sharded.graph.microbatches
    return ScheduleEntry(
        sharded.schedule,
        microbatches.count,
        dict(microbatches.dims),
        list(microbatches.joins),
        dict(microbatches.counted),
    )


def _whole(value: Value, microbatches: Microbatches) -> Value:
    """An input of the whole batch, from one of a microbatch."""
    dim = microbatches.dims.get(value.name)
    if dim is None:
        return value
    shape = value.shape
    return replace(value, shape=(*shape[:dim], shape[dim] * microbatches.count, *shape[dim + 1 :]))


def _training(graph: Graph, question: Question) -> TrainingEntry:
    shapes = [(i.value.shape, i.value.dtype) for i in graph.inputs if i.value.shape]
    batch = shapes[0][0][0] if shapes else 1
    tokens = max(
        (prod(shape) for shape, dtype in shapes if dtype == "int64" and len(shape) == 2), default=batch
    )
    return TrainingEntry(batch, tokens, question.precision, question.optimizer, question.compile)


def _parameter_count(graph: Graph) -> int:
    return sum(
        prod(p.shape) for p in graph.parameters if not p.is_buffer and p.alias_of is None and p.requires_grad
    )


def _model_flops(graph: Graph) -> float:
    """FLOPs of all matrix products and attention of one step on the whole batch."""
    calls = Counter(call.type for call in graph.calls)
    total = 0.0
    for segment in graph.types:
        for operator in segment.operators:
            call = Call(operator, segment.values)
            results = [value.shape if value is not None else () for value in call.results]
            for work in works(call, [value.shape for value in call.operands], results):
                if work is not None and work.family in ("matmul", "attention", "attention_backward"):
                    total += calls[segment.name] * work.flops
    return total * graph.microbatches.count


def _layout(layout: Layout, sharded: ShardedGraph) -> str:
    """A layout as text, without the axes that replicate."""
    shown = [(axis, p) for axis, p in zip(sharded.axis_names, layout, strict=True) if p != REPLICATE]
    return format_layout(tuple(p for _, p in shown), tuple(axis for axis, _ in shown))


def _stage(sharded: ShardedGraph, position: int) -> StageEntry:
    stage = sharded.stages[position]
    calls = [
        SegmentCallEntry(call.type, call.module, list(call.arguments), list(call.results))
        for call in sharded.graph.calls[stage.calls[0] : stage.calls[1] + 1]
    ]
    ways, rank = prod(sharded.sizes), position % sharded.stage_ranks
    zero = stage.zero if any(axis.kind == "shard" for axis in sharded.axes) else 0
    return StageEntry(calls, [rank * ways, (rank + 1) * ways - 1], stage.recompute, zero)


def segment_entries(realized: Realized) -> list[SegmentTypeEntry]:
    """Every segment type with its operators' strategies, layouts and prices."""
    return [_segment(segment, realized) for segment in realized.sharded.graph.types]


def conversion_entries(realized: Realized) -> list[ConversionEntry]:
    """Every conversion with its steps and price."""
    return [_conversion(conversion, realized.sharded) for conversion in realized.sharded.conversions]


def _segment(segment: SegmentType, realized: Realized) -> SegmentTypeEntry:
    sharded = realized.sharded
    return SegmentTypeEntry(
        name=segment.name,
        count=sum(call.type == segment.name for call in sharded.graph.calls),
        inputs=list(segment.inputs),
        boundaries={
            name: _layout(sharded.boundaries[segment.name, name], sharded) for name in segment.inputs
        },
        parameters={parameter.value: parameter.path for parameter in segment.parameters},
        buffers=[parameter.value for parameter in segment.parameters if parameter.is_buffer],
        constants={constant.value: constant.data for constant in segment.constants},
        operators=[_operator(segment, position, realized) for position in range(len(segment.operators))],
        outputs=list(segment.outputs),
        values={name: write_tensor(value) for name, value in segment.values.items()},
    )


def _operator(segment: SegmentType, position: int, realized: Realized) -> OperatorEntry:
    operator, sharded = segment.operators[position], realized.sharded
    strategy = sharded.strategies[segment.name, operator.name]
    price = realized.operators[segment.name, operator.name]
    return OperatorEntry(
        name=operator.name,
        call=operator.target,
        arguments=[write_argument(argument) for argument in operator.arguments],  # type: ignore[misc]
        keywords={key: write_argument(value) for key, value in operator.keywords},  # type: ignore[misc]
        results=list(operator.results),
        strategy=_strategy_text(strategy.names, sharded.axis_names),
        operands=[_layout(layout, sharded) for layout in strategy.operands],
        layouts=[_layout(layout, sharded) for layout in strategy.results],
        forward_s=price.forward_s,
        backward_s=price.backward_s,
        provenance=price.provenance,
        source=operator.source,
        module=operator.module,
    )


def _strategy_text(names: tuple[str, ...], axes: tuple[str, ...]) -> str:
    """``dp_shard:…2 tp:o``; axes that shard nothing are left out."""
    return " ".join(
        f"{axis}:{name.replace(' ', '')}" for axis, name in zip(axes, names, strict=True) if name != "-"
    )


def _parameters(sharded: ShardedGraph) -> list[ParameterEntry]:
    entries = []
    for p in sharded.graph.parameters:
        layout = sharded.parameters.get(p.alias_of or p.name, (REPLICATE,) * len(sharded.axes))
        kind = "parameter" if not p.is_buffer else "buffer" if p.is_persistent else "temporary buffer"
        tensor = f"{p.dtype}{list(p.shape)}" + (" grad" if p.requires_grad else "")
        entries.append(ParameterEntry(p.name, tensor, _resting_text(layout, sharded), kind, p.alias_of))
    return entries


def _resting_text(layout: Layout, sharded: ShardedGraph) -> str:
    """Only what is sharded: what happens along data axes is the mesh's ``parameters``."""
    shown = [(axis, p) for axis, p in zip(sharded.axis_names, layout, strict=True) if p.is_shard]
    return format_layout(tuple(p for _, p in shown), tuple(axis for axis, _ in shown))


def _conversion(conversion: Conversion, sharded: ShardedGraph) -> ConversionEntry:
    type_name, value = conversion.members[0]
    return ConversionEntry(
        tensor=f"{type_name}.{value}" if type_name else value,
        source=_layout(conversion.source, sharded),
        target=_layout(conversion.target, sharded),
        steps=[
            f"{sharded.axes[s.axis].name}: {s.source} → {s.target}, {s.forward} / {s.backward}"
            for s in conversion.steps
        ],
        count=conversion.count,
        seconds_s=conversion.seconds,
    )


def _memory_entry(memory: Memory) -> MemoryEntry:
    return MemoryEntry(
        memory.parameters,
        memory.gradients,
        memory.optimizer,
        memory.gathered,
        memory.activations,
        memory.temporaries,
        memory.overhead,
    )


def predicted_entry(
    realized: Realized, outcome: Staged | float, training: TrainingEntry, flops: float, cluster: Cluster
) -> PredictedEntry:
    """What the plan promises; ``outcome`` is the seconds of a step, or a pipeline's stages."""
    staged = outcome if isinstance(outcome, Staged) else None
    step_s = outcome.step_s if isinstance(outcome, Staged) else outcome
    device_s, host = step_s, realized.host if staged is None else HostTime(0.0, 0.0, 0.0)
    low_s, step_s, high_s = step_range_s(device_s, host)
    bubble = staged.bubble_fraction if staged else 0.0
    ranks = len(staged.memory) if staged else 1
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(training.precision, "float32")
    optimizer_s = sum(realized.upkeep_s.values()) - realized.traffic_s
    return PredictedEntry(
        step_time_s=step_s,
        tokens_per_s=training.tokens / step_s if step_s else 0.0,
        mfu=flops / (step_s * cluster.devices * cluster.device.peak(dtype)) if step_s else 0.0,
        peak_memory_bytes=max(
            memory.allocated for memory in (staged.memory if staged else (realized.memory,))
        ),
        exposed_communication_s=max(
            0.0, device_s * (1.0 - bubble) - (realized.operator_s + optimizer_s) / ranks
        ),
        bubble_fraction=bubble,
        memory=[_memory_entry(memory) for memory in (staged.memory if staged else (realized.memory,))],
        step_time_low_s=low_s,
        step_time_high_s=high_s,
        limit="host" if host.limits(device_s) else "device",
    )


def _solver(found: Found) -> SolverEntry:
    solution = found.best.solution
    objective = found.best.realized.objective_s
    return SolverEntry(
        objective_s=objective,
        lower_bound_s=solution.lower_bound,
        gap=max(0.0, (objective - solution.lower_bound) / objective) if objective else 0.0,
        status=str(solution.status),
        method=solution.method,
        wall_s=round(found.wall_s, 3),
        candidates=[
            *(
                CandidateEntry(_candidate_text(each), each.step_s, each.peak_bytes)
                for each in found.runner_ups
            ),
            *(
                CandidateEntry(_shape_text(each), each.step_s, round(each.peak_bytes), is_estimate=True)
                for each in found.estimates
            ),
        ],
    )


def _shape_text(estimate: Estimate) -> str:
    """Ranks and execution of a shape, as those of a plan."""
    shape = estimate.shape
    sizes = {
        "pp": shape.pp,
        "dp_replicate": shape.dp_replicate,
        "dp_shard": shape.dp_shard,
        "cp": shape.cp,
        "tp": shape.tp,
    }
    mesh = " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"
    is_sharded = shape.dp_shard > 1 or shape.execution.zero > 0
    return ", ".join([mesh, *_execution_parts(shape.execution, estimate.schedule, is_sharded=is_sharded)])


def _candidate_text(tried: Tried) -> str:
    """Mesh and execution, as far as it is not the plain one."""
    execution, axes = tried.execution, tried.realized.sharded.axes
    stages = [f"pp {execution.stage_ranks}"] if execution.stage_ranks > 1 else []
    mesh = " × ".join([*stages, *([_mesh_text(axes)] if axes or not stages else [])])
    schedule = tried.staged.schedule if tried.staged else ""
    is_sharded = any(axis.kind == "shard" for axis in axes)
    return ", ".join([mesh, *_execution_parts(execution, schedule, is_sharded=is_sharded)])


def _execution_parts(execution: Execution, schedule: str, *, is_sharded: bool) -> list[str]:
    parts = [schedule] if schedule else []
    if is_sharded:
        parts.append(f"zero {execution.zero}")
    if execution.recompute != "none":
        parts.append(f"recompute {execution.recompute}")
    if execution.microbatches > 1:
        parts.append(f"{execution.microbatches} microbatches")
    return parts


def _mesh_text(axes: tuple[NamedAxis, ...]) -> str:
    return " × ".join(f"{axis.name} {axis.size}" for axis in axes) or "one device"


def _unruled(graph: Graph) -> list[str]:
    """Operators that run replicated because nobody declared how to shard them."""
    names: dict[str, list[str]] = {}
    for segment in graph.types:
        for operator in segment.operators:
            call = Call(operator, segment.values)
            if call.operands and loops_of(call) is None:
                names.setdefault(operator.target, []).append(f"{segment.name}.{operator.name}")
    return [
        f"{target} has no sharding rule and runs replicated: {', '.join(where)}"
        for target, where in names.items()
    ]
