"""Seconds of what a plan does on one mesh: operators, conversions and the upkeep of parameters.

The planner's side of ``cost_models``: it knows layouts and meshes, the models know bytes and links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from autopar.capture.graph import Graph, Ref, Value
from autopar.planner.execution import Execution
from autopar.planner.flow import Flow
from autopar.planner.fusion import Fusion
from autopar.planner.internal import internal_all_reduces
from autopar.planner.kept import Kept
from autopar.planner.kernels import Kernels, kernels_of
from autopar.planner.labels import BATCH
from autopar.planner.mesh import SHARD, MeshAxis
from autopar.planner.operators import PlannedType
from autopar.planner.regions import execution_of
from autopar.planner.tensors import Tensor, tensors_of
from autopar.shardings.calls import Call
from autopar.shardings.conversion import ConversionTable, Step, conversion_table
from autopar.shardings.placement import Layout, local_shape, shard
from autopar.shardings.strategy import Strategy
from cost_models.cluster import AxisPath, Cluster, Link, joined_path, mesh_axes
from cost_models.collectives import all_gather_s, all_reduce_s, all_to_all_s, reduce_scatter_s
from cost_models.dtypes import dtype_bytes
from cost_models.operators import Work, operator_s

__all__ = ["MASTER_BYTES", "Known", "OperatorPrice", "PricedStrategy", "Prices"]

PLAIN_STEP_S = 1e-8
"""Added to every step of a conversion, so that among equals the plan with fewer of them wins."""
MASTER_BYTES = 4
"""Parameters rest, and gradients are summed, in float32."""
OPTIMIZER_BYTES_PER_PARAMETER = 28
"""AdamW in float32: reads parameter, gradient and two moments, writes all but the gradient (4 B each)."""


@dataclass(frozen=True, slots=True)
class OperatorPrice:
    """One operator with one strategy on one device."""

    forward_s: float
    backward_s: float
    provenance: str

    @property
    def seconds(self) -> float:
        return self.forward_s + self.backward_s


@dataclass(frozen=True, slots=True)
class PricedStrategy:
    """One strategy of one call of an operator."""

    strategy: Strategy
    seconds: float
    kept_bytes: float
    """What autograd keeps of the operator's own making."""


@dataclass(frozen=True, slots=True)
class Known:
    """What has been worked out for meshes of the same sizes, whatever the kinds of their axes."""

    operators: dict[object, OperatorPrice] = field(default_factory=dict)
    fusions: dict[tuple[str, str], Fusion] = field(default_factory=dict)
    """By segment type and role."""
    tables: dict[object, ConversionTable] = field(default_factory=dict)
    steps: dict[tuple[int, str, str, int, int], float] = field(default_factory=dict)
    """Seconds of one step by axis, collectives and bytes before and after."""
    strategies: dict[tuple[str, str, tuple[str, ...]], PricedStrategy | None] = field(default_factory=dict)
    """By segment type, operator and choice on each axis; None where a dim does not divide evenly."""


@dataclass(frozen=True)
class Prices:
    """All prices on one mesh of one cluster."""

    cluster: Cluster
    axes: tuple[MeshAxis, ...]
    known: Known = field(default_factory=Known, repr=False)
    execution: Execution = field(default_factory=Execution)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def paths(self) -> tuple[AxisPath, ...]:
        return mesh_axes(self.cluster, (self.execution.stage_ranks, *self.sizes))[1:]

    @cached_property
    def stage_path(self) -> AxisPath:
        """From a rank to the same one of the next stage."""
        return mesh_axes(self.cluster, (self.execution.stage_ranks, *self.sizes))[0]

    @cached_property
    def stage_links(self) -> tuple[Link, ...]:
        """By pipeline rank, the slowest link from its devices to the next rank; from the last rank to the first."""
        cluster, devices, ranks = self.cluster, prod(self.sizes), self.execution.stage_ranks
        node_of = [device // cluster.devices_per_node for device in (0, devices * ranks - 1)]
        crosses = [
            rank * devices // cluster.devices_per_node
            != ((rank + 2) * devices - 1) // cluster.devices_per_node
            for rank in range(ranks - 1)
        ]
        return tuple(
            cluster.inter if each else cluster.intra for each in (*crosses, node_of[0] != node_of[1])
        )

    def fusion(self, planned: PlannedType) -> Fusion:
        """The kernels of a segment as its part of the program runs."""
        key = (planned.segment.name, planned.role)
        if key not in self.known.fusions:
            execution = execution_of(planned.role, self.execution)
            self.known.fusions[key] = Fusion(Kept(Flow(planned.segment), execution))
        return self.known.fusions[key]

    def kept(self, planned: PlannedType) -> Kept:
        """What a segment keeps for its backward."""
        return self.fusion(planned).kept

    def tensors(self, graph: Graph, types: Mapping[str, PlannedType]) -> tuple[Tensor, ...]:
        """Every tensor of ``graph``, with what its segments keep as its program runs."""
        return tensors_of(graph, {name: self.kept(planned) for name, planned in types.items()})

    def operator(
        self, call: Call, operands: Sequence[Layout], results: Sequence[Layout], planned: PlannedType
    ) -> OperatorPrice:
        """Seconds of a call of ``planned`` whose operands and results have these layouts.

        Backward includes what is computed again.
        """
        reads = tuple(
            local_shape(v.shape, layout, self.sizes)
            for v, layout in zip(call.operands, operands, strict=True)
        )
        makes = tuple(
            local_shape(v.shape, layout, self.sizes) if v is not None else ()
            for v, layout in zip(call.results, results, strict=True)
        )
        gradients = tuple(value.requires_grad for value in call.operands)
        literals = tuple(argument for argument in call.operator.arguments if not isinstance(argument, Ref))
        traffic = self.fusion(planned).traffic[call.operator.name]
        key = (
            traffic,
            call.operator.target,
            literals,
            call.result.dtype,
            reads,
            makes,
            gradients,
            tuple(operands[:1]),
        )
        if key not in self.known.operators:
            kernels = kernels_of(call, reads, makes, traffic)
            inside = sum(
                self._collective_s("all_reduce", axis, size, size)
                for axis, size in internal_all_reduces(call, operands, self.sizes)
            )
            self.known.operators[key] = self._price(kernels, inside)
        return self.known.operators[key]

    def _price(self, kernels: Kernels, inside_s: float = 0.0) -> OperatorPrice:
        forward = [operator_s(work, self.cluster.device) for work in kernels.forward]
        backward = [operator_s(work, self.cluster.device) for work in kernels.backward]
        known = [price.provenance for price in (*forward, *backward) if price.seconds]
        return OperatorPrice(
            sum((price.seconds for price in forward), 0.0) + inside_s,
            sum((price.seconds for price in backward), 0.0),
            max(known, key=known.count) if known else "measured",
        )

    def table(self, value: Value, layouts: frozenset[Layout], *, runs_again: bool = False) -> ConversionTable:
        """Cheapest conversions of a value among the layouts that somebody yields or wants.

        ``runs_again`` where recomputation repeats what they do in the forward.
        Paths may lead through a shard of any dim, on axes for the batch of dim 0, so that they do not depend on
        who asks.
        """
        shards = tuple(
            frozenset(layout[position] for layout in layouts if layout[position].is_shard)
            | frozenset(
                shard(dim)
                for dim, size in enumerate(value.shape)
                if size % axis.size == 0 and (dim == 0 or axis.label != BATCH)
            )
            for position, axis in enumerate(self.axes)
        )
        key = (value.shape, value.dtype, value.requires_grad, shards, runs_again)
        if key not in self.known.tables:
            self.known.tables[key] = conversion_table(
                value.shape,
                dtype_bytes(value.dtype),
                shards,
                self.sizes,
                self._step_and_again_s if runs_again else self.step_s,
                requires_grad=value.requires_grad,
            )
        return self.known.tables[key]

    def step_s(self, step: Step, bytes_before: int, bytes_after: int) -> float:
        """Seconds of one step of a conversion, forward and backward."""
        key = (step.axis, step.forward, step.backward, bytes_before, bytes_after)
        if key not in self.known.steps:
            forward = self._collective_s(step.forward, step.axis, bytes_before, bytes_after)
            backward = self._collective_s(step.backward, step.axis, bytes_after, bytes_before)
            self.known.steps[key] = PLAIN_STEP_S + forward + backward
        return self.known.steps[key]

    def _step_and_again_s(self, step: Step, bytes_before: int, bytes_after: int) -> float:
        """The same where the forward is repeated before the backward."""
        return self.step_s(step, bytes_before, bytes_after) + self.again_s(step, bytes_before, bytes_after)

    def again_s(self, step: Step, bytes_before: int, bytes_after: int) -> float:
        """Seconds of what a step of a conversion does in the forward, a second time."""
        forward = replace(step, backward="nothing")
        return self.step_s(forward, bytes_before, bytes_after) - PLAIN_STEP_S

    def _collective_s(self, name: str, axis: int, before: int, after: int) -> float:
        path = self.paths[axis]
        match name:
            case "nothing":
                return 0.0
            case "all_gather":
                return all_gather_s(after, path)
            case "reduce_scatter":
                return reduce_scatter_s(before, path)
            case "all_reduce":
                return all_reduce_s(before, path)
            case "all_to_all":
                return all_to_all_s(before, path)
            case "slice" | "share" | "pad":
                small = min(before, after)
                copy = Work("copy", 0.0, small, max(small, after), "float32")
                return self._price(Kernels((copy,), ())).forward_s
        raise AssertionError(f"unknown collective {name}")

    @cached_property
    def data_path(self) -> AxisPath | None:
        """The group of ranks over which gradients are summed; None without data axes."""
        paths = [path for axis, path in zip(self.axes, self.paths, strict=True) if axis.is_data]
        return joined_path(paths) if paths else None

    @property
    def shard_ways(self) -> int:
        """Ranks that a parameter is spread over at rest, beyond the layout in which it is used."""
        return prod(axis.size for axis in self.axes if axis.kind == SHARD)

    def upkeep_s(self, value: Value, at_rest: Layout) -> float:
        """Seconds a step spends on one parameter: data-parallel gathers and sums, and the optimizer.

        The gathers and sums of a segment share their latency, so they are priced by bandwidth (64 MiB each).
        """
        local = prod(local_shape(value.shape, at_rest, self.sizes)) * dtype_bytes(value.dtype)
        if not value.requires_grad:
            return 0.0
        return self.traffic_s(value, at_rest) + self.optimizer_s(local / dtype_bytes(value.dtype))

    def traffic_s(self, value: Value, at_rest: Layout) -> float:
        """Seconds of one parameter's gathers and gradient sums over the data axes."""
        local = prod(local_shape(value.shape, at_rest, self.sizes)) * dtype_bytes(value.dtype)
        gradient = local * MASTER_BYTES / dtype_bytes(value.dtype)
        return self.gradient_sync_s(gradient) + self.gather_s(local) if value.requires_grad else 0.0

    def gradient_sync_s(self, local_bytes: float) -> float:
        """Summing one parameter's gradient over the data axes."""
        seconds, remaining = 0.0, local_bytes
        times = self.execution.microbatches if self.execution.zero > 1 else 1
        for axis, path in self._data_axes(SHARD):
            seconds += times * _share(reduce_scatter_s, remaining, path)
            remaining /= axis.size
        for _, path in self._data_axes("replicate"):
            seconds += _share(all_reduce_s, remaining, path)
        return seconds

    def gather_s(self, local_bytes: float) -> float:
        """Gathering one parameter: once a step, or for every forward and backward."""
        seconds, remaining = 0.0, local_bytes
        times = 2 * self.execution.microbatches if self.execution.zero == 3 else 1
        for axis, path in self._data_axes(SHARD):
            seconds += times * _share(all_gather_s, remaining, path)
            remaining /= axis.size
        return seconds

    def optimizer_s(self, local_elements: float) -> float:
        """One AdamW update of the part that this rank keeps."""
        moved = OPTIMIZER_BYTES_PER_PARAMETER * local_elements / self.shard_ways
        small = Work("optimizer", 0.0, moved * 4 / 7, moved * 3 / 7, "float32", kernels=1)
        launch = Work("optimizer", 0.0, 0.0, 0.0, "float32", kernels=1)
        device = self.cluster.device
        return operator_s(small, device).seconds - operator_s(launch, device).seconds

    def _data_axes(self, kind: str) -> list[tuple[MeshAxis, AxisPath]]:
        return [(axis, path) for axis, path in zip(self.axes, self.paths, strict=True) if axis.kind == kind]


_BUCKET_BYTES = 64 * 2**20


def _share(collective, part_bytes: float, path: AxisPath) -> float:  # type: ignore[no-untyped-def]
    """A tensor's share of a collective that carries many tensors."""
    return collective(_BUCKET_BYTES, path) * part_bytes / _BUCKET_BYTES if path.ranks > 1 else 0.0
