"""The plan as data: what the JSON file holds. Units are in the names; layouts and strategies are text.

Decisions (to be edited by hand) are ``mesh``, each operator's ``strategy``, ``boundaries``, the ``layout`` of
parameters and inputs. Everything else follows from them and is derived again when a plan is loaded.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "FORMAT",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PRECISIONS",
    "CandidateEntry",
    "ClusterEntry",
    "ConversionEntry",
    "InputEntry",
    "MemoryEntry",
    "MeshAxisEntry",
    "ModelEntry",
    "OperatorEntry",
    "ParameterEntry",
    "Plan",
    "PredictedEntry",
    "ScheduleEntry",
    "SegmentCallEntry",
    "SegmentTypeEntry",
    "SolverEntry",
    "StageEntry",
    "TrainingEntry",
]

FORMAT = "autopar-plan/1"
PRECISIONS = ("fp32", "bf16", "fp16")
"""Of activations and of parameters in use; parameters rest in float32."""
OPTIMIZERS = ("adamw",)
OBJECTIVES = ("time", "memory", "throughput-per-device")
"""What a plan may be the best by."""

Json = Any
"""Any JSON value."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a plan."""


class InputEntry(_Entry, frozen=True):
    """One tensor of the batch."""

    name: str
    path: str
    """Where the caller passes it: ``0``, ``labels``."""
    tensor: str
    """``int64[8, 64]``: the whole batch."""
    layout: str
    """How a rank reads it: ``dp_shard:S(0)``."""


class ModelEntry(_Entry, frozen=True):
    name: str
    """Class of the module."""
    source: str
    """What built it: ``gpt:layers=4,hidden=256``; empty for a module handed in."""
    fingerprint: str
    parameters: int
    """Trained numbers, tied weights once."""
    flops: float
    """Model FLOPs of one step, forward and backward, recomputation not counted."""
    output_tree: str


class ClusterEntry(_Entry, frozen=True):
    name: str
    """``h100:2x8``"""
    device: str
    nodes: int
    devices_per_node: int
    memory_limit_bytes: int
    profile: list[str] = []
    """Lines of the device and link profile (TOML), for a cluster that its name alone does not describe."""


class TrainingEntry(_Entry, frozen=True):
    global_batch: int
    tokens: int
    """Positions in one global batch: batch × sequence for token inputs, batch otherwise."""
    precision: str
    optimizer: str
    compile: bool = False
    """Blocks and the loss head go through ``torch.compile``."""


class MeshAxisEntry(_Entry, frozen=True):
    axis: str
    size: int
    parameters: str
    """``model``: laid out as used; ``replicate`` or ``shard``: kept so by the data-parallel engine; ``stage``:
    each of its ranks runs other stages."""


class OperatorEntry(_Entry, frozen=True):
    """One operator of a segment type; its decision is ``strategy``."""

    name: str
    call: str
    """``aten.linear.default``"""
    arguments: list[Json]
    """``%x`` is a value, ``'tanh'`` a string, ``dtype:float32`` a torch object, numbers are themselves."""
    keywords: dict[str, Json]
    results: list[str | None]
    strategy: str
    """``dp_shard:…2 tp:o``: the factor that each axis shards."""
    operands: list[str]
    """Layouts in which the operands are read."""
    layouts: list[str]
    """Layouts in which the results are made."""
    forward_s: float
    backward_s: float
    provenance: str
    source: str
    module: str


class SegmentTypeEntry(_Entry, frozen=True):
    name: str
    count: int
    inputs: list[str]
    boundaries: dict[str, str]
    """Layout in which the segment takes each input."""
    parameters: dict[str, str]
    """Path of every parameter and buffer, relative to the segment's module, by value."""
    buffers: list[str]
    """Those that are buffers."""
    constants: dict[str, Json]
    operators: list[OperatorEntry]
    outputs: list[str]
    values: dict[str, str]
    """``float32[8, 64, 256] grad``"""


class SegmentCallEntry(_Entry, frozen=True):
    type: str
    module: str
    arguments: list[str]
    results: list[str]


class StageEntry(_Entry, frozen=True):
    """Consecutive segments on one submesh. Stage i runs on rank i of the axis ``pp``, modulo its size."""

    segments: list[SegmentCallEntry]
    ranks: list[int]
    """First and last rank."""
    recompute: str
    zero: int


class ParameterEntry(_Entry, frozen=True):
    name: str
    tensor: str
    """``float32[512, 256] grad``"""
    layout: str
    """At rest, along the axes that operators shard it over."""
    kind: str
    """``parameter``, ``buffer`` or ``temporary buffer`` (not in the state dict)."""
    alias_of: str | None


class ConversionEntry(_Entry, frozen=True):
    tensor: str
    """``GPTBlock.norm_1``"""
    source: str
    target: str
    steps: list[str]
    """``tp: sum nothing / all_reduce``: collective forward / backward."""
    count: int
    seconds_s: float


class ScheduleEntry(_Entry, frozen=True):
    name: str
    """``none`` without stages."""
    microbatches: int
    """Slices of the batch; the shapes of segments are those of one slice."""
    dims: dict[str, int] = {}
    """Dim along which each input is cut into slices, where there are several."""
    joins: list[str] = []
    """How the slices' outputs combine: ``sum``, ``cat 0`` (dim), ``same``."""
    counted: dict[str, str] = {}
    """Inputs that hold the number of targets that an operator does not ignore in the whole batch."""


class MemoryEntry(_Entry, frozen=True):
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    gathered_bytes: int
    activations_bytes: int
    temporaries_bytes: int
    overhead_bytes: int


class PredictedEntry(_Entry, frozen=True):
    step_time_s: float
    tokens_per_s: float
    mfu: float
    peak_memory_bytes: int
    exposed_communication_s: float
    bubble_fraction: float
    memory: list[MemoryEntry]
    """By stage."""
    step_time_low_s: float = 0.0
    step_time_high_s: float = 0.0
    """Between these, by how fast the host issues the step; equal to ``step_time_s`` where it never limits."""
    limit: str = ""
    """``host`` where the device is expected to wait for the host, else ``device``."""


class CandidateEntry(_Entry, frozen=True):
    mesh: str
    step_time_s: float
    peak_memory_bytes: int
    is_estimate: bool = False
    """Summed up from parts, not planned."""


class SolverEntry(_Entry, frozen=True):
    objective_s: float
    lower_bound_s: float
    gap: float
    status: str
    method: str
    wall_s: float
    candidates: list[CandidateEntry]
    """The best plan of every other mesh, fastest first."""


class Plan(_Entry, frozen=True):
    """The whole decision."""

    format: str
    autopar: str
    model: ModelEntry
    cluster: ClusterEntry
    training: TrainingEntry
    inputs: list[InputEntry]
    mesh: list[MeshAxisEntry]
    stages: list[StageEntry]
    outputs: list[str]
    outer_values: dict[str, str]
    """Values between segments."""
    segments: list[SegmentTypeEntry]
    parameters: list[ParameterEntry]
    conversions: list[ConversionEntry]
    schedule: ScheduleEntry
    predicted: PredictedEntry
    solver: SolverEntry
    notes: list[str]
    """What capture changed, operators without a rule, and other things to know."""
    pins: str = ""
