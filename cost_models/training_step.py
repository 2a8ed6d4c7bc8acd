"""Seconds of one training step of a transformer under a pinned Megatron-like configuration, in closed form.

Composed from the prices of operators, collectives and schedules alone: what a step takes that is none of
these is not in it. The closed forms of the pipeline are those of ``cost_models.schedules``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cost_models.collectives import all_gather_s, all_reduce_s, all_to_all_s, reduce_scatter_s, send_s
from cost_models.device import Device
from cost_models.operators import Work, operator_s
from cost_models.schedules import pipeline_s
from cost_models.topology import AxisPath, Cluster, mesh_axes
from cost_models.transformer import (
    BlockShape,
    Kernels,
    TransformerShape,
    attention_work,
    block_backward,
    block_forward,
    head_work,
    optimizer_work,
)

__all__ = ["Configuration", "Program", "StepTime", "training_step_s"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the step is split and repeated."""

    global_batch: int
    """Sequences per step."""
    seq: int
    microbatch: int
    """Sequences at a time on one data rank."""
    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    chunks: int = 1
    """Model chunks per pipeline rank."""
    recompute: str = "none"
    """``none``, ``selective`` (attention core) or ``full``."""
    zero_stage: int = 0
    """0 replicas, 1 optimizer sharded, 2 parameters kept after forward, 3 gathered twice (FSDP)."""
    zero_ranks: int = 0
    """Data ranks over which the optimizer or parameters are sharded; 0 for all."""
    is_sequence_parallel: bool = False
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.recompute not in ("none", "selective", "full"):
            raise ValueError(f"unknown recompute {self.recompute!r}: known are none, selective, full")
        if self.global_batch % (self.dp * self.microbatch):
            raise ValueError(
                f"{self.global_batch} sequences are not whole microbatches of {self.microbatch} "
                f"on {self.dp} data ranks"
            )

    @property
    def microbatches(self) -> int:
        """Microbatches of one data rank in one step."""
        return self.global_batch // (self.dp * self.microbatch)

    @property
    def schedule(self) -> str:
        """Name of the pipeline schedule."""
        return "interleaved" if self.chunks > 1 else "1f1b"


@dataclass(frozen=True, slots=True)
class Program:
    """What the software does, beside the configuration: facts of a framework, the same for all its runs."""

    kernels: Kernels = field(default_factory=Kernels)
    host_operators: tuple[int, int] = (0, 0)
    """Operators that the host issues per block, collectives included; 0 where it is never the limit."""
    overlaps_gradients: bool = True
    """Gradient reductions and parameter gathers run beside compute."""
    overlaps_tensor_collectives: bool = False
    """Tensor-parallel gathers and scatters run beside the products they feed, in pieces."""
    overlaps_pipeline_sends: bool = True
    gradient_bytes: int = 4
    """Bytes per gradient on the wire of the data-parallel reduction."""
    accumulation_bytes: float = 0.0
    """Bytes moved per weight and microbatch to add its gradient to what has accumulated."""
    optimizer_bytes: float = 28.0
    """Bytes moved per parameter by the optimizer."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Where the seconds of a step go, on the critical path."""

    pipeline_s: float
    """Forward and backward of all microbatches, bubble included."""
    gradients_s: float
    """Data-parallel communication that compute does not hide."""
    optimizer_s: float
    host_bound_share: float
    """Share of the blocks' time that the host, not the device, decides."""

    @property
    def total_s(self) -> float:
        """The step."""
        return self.pipeline_s + self.gradients_s + self.optimizer_s


def training_step_s(
    shape: TransformerShape, configuration: Configuration, program: Program, cluster: Cluster
) -> StepTime:
    """Predicted step of ``shape`` on the first tp·cp·dp·pp devices of ``cluster``."""
    return _Step(shape, configuration, program, cluster).time()


@dataclass(frozen=True, slots=True)
class _Paths:
    """Mesh of a run, outermost first: pipeline, data, context, tensor (Megatron's order)."""

    pipeline: AxisPath
    data: AxisPath
    context: AxisPath
    tensor: AxisPath


class _Step:
    """One prediction: holds what all its parts share."""

    def __init__(
        self, shape: TransformerShape, configuration: Configuration, program: Program, cluster: Cluster
    ) -> None:
        self.shape, self.configuration, self.program = shape, configuration, program
        self.device: Device = cluster.device
        sizes = (configuration.pp, configuration.dp, configuration.cp, configuration.tp)
        self.paths = _Paths(*mesh_axes(cluster, sizes))
        self.block = BlockShape(
            shape,
            configuration.microbatch,
            configuration.seq,
            configuration.dtype,
            configuration.tp,
            configuration.cp,
            configuration.is_sequence_parallel,
        )

    def time(self) -> StepTime:
        stages = self.stage_times()
        pipeline = pipeline_s(
            self.configuration.schedule if self.configuration.pp > 1 else "1f1b",
            stages,
            microbatches=self.configuration.microbatches,
            chunks=self.configuration.chunks,
        )
        return StepTime(pipeline, self.gradients_s(), self.optimizer_s(), self.host_bound_share())

    def stage_times(self) -> list[float]:
        """Forward + backward of one microbatch on each pipeline rank; the last has the loss head."""
        blocks = self.shape.layers / self.configuration.pp
        stage_s = blocks * (self.forward_s() + self.backward_s()) + self.transfers_s()
        head_s = self.seconds(head_work(self.block, self.program.kernels))
        head_s += self.seconds(head_work(self.block, self.program.kernels, is_backward=True))
        stages = [stage_s] * self.configuration.pp
        stages[-1] += head_s
        return stages

    def forward_s(self) -> float:
        """One block forward: device or host, whichever is later, and what collectives add."""
        device_s = self.seconds(block_forward(self.block, self.program.kernels)) + self.tensor_s()
        return max(self.beside_s(device_s + self.context_s(), self.gather_s()), self.host_s(0))

    def backward_s(self) -> float:
        """One block backward, with what is recomputed before it."""
        device_s = self.seconds(block_backward(self.block, self.program.kernels)) + self.tensor_s()
        device_s += 2.0 * self.context_s() + self.recomputed_s() + self.accumulation_s()
        host_s = self.host_s(1) + (self.host_s(0) if self.configuration.recompute == "full" else 0.0)
        gathered_again_s = self.gather_s() if self.configuration.zero_stage == 3 else 0.0
        return max(self.beside_s(device_s, gathered_again_s + self.scatter_s()), host_s)

    def beside_s(self, compute_s: float, communication_s: float) -> float:
        """Both at once: the longer of the two, and compute slowed down while they share the device."""
        shared_s = min(compute_s, communication_s)
        return max(compute_s, communication_s) + (self.device.overlap_slowdown - 1.0) * shared_s

    def accumulation_s(self) -> float:
        """Adding one block's gradients to what earlier microbatches left."""
        moved = self.program.accumulation_bytes * self.shape.block_weights / self.configuration.tp
        return self.seconds([Work("elementwise", 0.0, moved * 2 / 3, moved / 3, "float32")]) if moved else 0.0

    def recomputed_s(self) -> float:
        if self.configuration.recompute == "full":
            return self.seconds(block_forward(self.block, self.program.kernels)) + self.tensor_s()
        if self.configuration.recompute == "selective":
            return self.seconds(attention_work(self.block, self.program.kernels))
        return 0.0

    def host_s(self, is_backward: int) -> float:
        """Host time to issue one block's operators."""
        return self.program.host_operators[is_backward] * self.device.host_dispatch_s

    def host_bound_share(self) -> float:
        host_s = self.host_s(0) + self.host_s(1)
        return min(host_s / (self.forward_s() + self.backward_s()), 1.0)

    def tensor_s(self) -> float:
        """Tensor-parallel collectives of one pass through one block: two sums over the activations."""
        activation_bytes = 2.0 * self.block.tokens * self.shape.hidden
        if self.configuration.is_sequence_parallel:
            gather_s = all_gather_s(activation_bytes, self.paths.tensor)
            once_s = gather_s + reduce_scatter_s(activation_bytes, self.paths.tensor)
        else:
            once_s = all_reduce_s(activation_bytes, self.paths.tensor)
        if self.program.overlaps_tensor_collectives:
            shown_s = once_s / self.configuration.tp  # the first piece of tp has no product to hide behind
            once_s = shown_s + (self.device.overlap_slowdown - 1.0) * (once_s - shown_s)
        return 2.0 * once_s

    def context_s(self) -> float:
        """Exchange of keys and values among context ranks, of which the first piece shows."""
        kv_bytes = 4.0 * self.block.tokens * self.shape.kv_hidden / self.configuration.tp
        return all_to_all_s(kv_bytes, self.paths.context) / self.configuration.cp

    def transfers_s(self) -> float:
        """Activations and their gradients between pipeline ranks, for one microbatch."""
        if self.configuration.pp == 1 or self.program.overlaps_pipeline_sends:
            return 0.0
        activation_bytes = 2.0 * self.block.tokens * self.shape.hidden
        if self.configuration.is_sequence_parallel or self.configuration.chunks > 1:
            activation_bytes /= self.configuration.tp  # scattered over tensor ranks (SC'21, section 4.1)
        return 2.0 * self.configuration.chunks * send_s(activation_bytes, self.paths.pipeline.link)

    def gather_s(self) -> float:
        """Gather of one block's parameters at 16 bits, where they are sharded (FSDP)."""
        if self.configuration.zero_stage < 2:
            return 0.0
        return all_gather_s(2.0 * self.shape.block_weights / self.configuration.tp, self.zero_path())

    def scatter_s(self) -> float:
        """Reduction of one block's gradients to their shards (FSDP)."""
        if self.configuration.zero_stage < 2:
            return 0.0
        gradient_bytes = self.program.gradient_bytes * self.shape.block_weights / self.configuration.tp
        return reduce_scatter_s(gradient_bytes, self.zero_path())

    def zero_path(self) -> AxisPath:
        """The data ranks over which parameters or optimizer are sharded: neighbours first."""
        path, ranks = self.paths.data, self.configuration.zero_ranks or self.configuration.dp
        ranks_per_node = min(path.ranks_per_node, ranks)
        return AxisPath(ranks, ranks_per_node, max(ranks // ranks_per_node, 1), path.intra, path.inter)

    def rank_parameters(self) -> float:
        """Parameters on one rank before data-parallel sharding: those of the fullest stage."""
        embeddings = self.shape.vocab * self.shape.hidden
        blocks = self.shape.layers * self.shape.block_weights / self.configuration.pp
        return (blocks + embeddings) / self.configuration.tp

    def gradients_s(self) -> float:
        """Data-parallel communication of gradients and updated parameters that compute does not hide.

        It goes in buckets of one block; that of the embedding comes last in backward and first in forward,
        so that nothing hides it.
        """
        if self.configuration.zero_stage >= 2 or self.configuration.dp == 1:
            return 0.0
        block, table = self.shape.block_weights, self.shape.vocab * self.shape.hidden
        blocks = self.shape.layers / self.configuration.pp
        reduced_s, gathered_s = blocks * self.reduction_s(block), blocks * self.refresh_s(block)
        shown_s = self.reduction_s(table) + self.refresh_s(table)
        if not self.program.overlaps_gradients:
            return shown_s + reduced_s + gathered_s
        backward_s, forward_s = blocks * self.backward_s(), blocks * self.forward_s()
        shown_s += self.beside_s(backward_s, reduced_s) - backward_s
        return shown_s + self.beside_s(forward_s, gathered_s) - forward_s

    def reduction_s(self, weights: float) -> float:
        """Sum of the gradients of ``weights`` over data ranks: for all, or for owners of optimizer shards."""
        gradient_bytes = self.program.gradient_bytes * weights / self.configuration.tp
        has_replicas = self.configuration.zero_ranks not in (0, self.configuration.dp)
        if self.configuration.zero_stage == 0 or has_replicas:
            return all_reduce_s(gradient_bytes, self.paths.data)
        return reduce_scatter_s(gradient_bytes, self.paths.data)

    def refresh_s(self, weights: float) -> float:
        """Gather of updated ``weights`` at 16 bits, where the optimizer is sharded."""
        if self.configuration.zero_stage == 0:
            return 0.0
        return all_gather_s(2.0 * weights / self.configuration.tp, self.zero_path())

    def optimizer_s(self) -> float:
        shards = (
            (self.configuration.zero_ranks or self.configuration.dp) if self.configuration.zero_stage else 1
        )
        work = optimizer_work(
            self.rank_parameters() / shards, bytes_per_parameter=self.program.optimizer_bytes
        )
        return operator_s(work, self.device).seconds

    def seconds(self, works: Iterable[Work]) -> float:
        return sum(operator_s(work, self.device).seconds for work in works)
