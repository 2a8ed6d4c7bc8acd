"""What must hang together among the decisions of a plan, which may have been edited, before any figure is derived."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from math import prod

from autopar.errors import PlanError
from autopar.plan.schema import OPTIMIZERS, PRECISIONS, Plan
from autopar.plan.text import read_tensor
from autopar.planner.execution import RECOMPUTE_LEVELS
from autopar.planner.mesh import KINDS, SHARD
from autopar.planner.pins import ZERO_LEVELS
from autopar.planner.schedules import runs
from cost_models.cluster import Cluster

__all__ = ["STAGE", "check_decisions"]

STAGE = "stage"
"""What the pipeline's axis says of parameters: each of its ranks has others."""
PIPELINE = "pp"
"""The name of that axis."""


def check_decisions(plan: Plan, cluster: Cluster) -> None:
    """Raise ``PlanError`` naming the first entry that contradicts the others, the numbers and what is legal."""
    checks: tuple[Callable[[Plan, Cluster], None], ...] = (
        _cluster_is_as_named,
        _training_is_that_of_the_inputs,
        _axes_are_sound,
        _mesh_is_the_cluster,
        _stages_are_sound,
        _zero_suits_the_mesh,
        _stages_are_dealt_to_ranks,
        _schedule_runs_the_stages,
        _ranks_follow_from_the_mesh,
    )
    for check in checks:
        check(plan, cluster)


def _cluster_is_as_named(plan: Plan, cluster: Cluster) -> None:
    entry = plan.cluster
    written = (entry.device, entry.nodes, entry.devices_per_node)
    known = (cluster.device.name, cluster.nodes, cluster.devices_per_node)
    if written != known:
        raise PlanError(
            f"the plan's cluster {entry.name} has device, nodes and devices_per_node {_listed(known)}, "
            f"its entry says {_listed(written)}: restore them, or plan for another cluster."
        )
    if entry.memory_limit_bytes < 1:
        raise PlanError(f"memory_limit_bytes is {entry.memory_limit_bytes}: a device has at least 1 byte.")


def _training_is_that_of_the_inputs(plan: Plan, cluster: Cluster) -> None:
    training = plan.training
    for name, value, legal in (
        ("precision", training.precision, PRECISIONS),
        ("optimizer", training.optimizer, OPTIMIZERS),
    ):
        if value not in legal:
            raise PlanError(f"training has the {name} '{value}': legal are {', '.join(legal)}.")
    values = [read_tensor(entry.name, entry.tensor) for entry in plan.inputs]
    batch = next((value.shape[0] for value in values if value.shape), 1)
    tokens = max(
        (prod(value.shape) for value in values if value.dtype == "int64" and len(value.shape) == 2),
        default=batch,
    )
    if (training.global_batch, training.tokens) != (batch, tokens):
        raise PlanError(
            f"training says global_batch {training.global_batch} and tokens {training.tokens}, but the inputs have "
            f"{batch} and {tokens}: restore them, or plan again for another batch."
        )


def _axes_are_sound(plan: Plan, cluster: Cluster) -> None:
    for place, entry in enumerate(plan.mesh):
        is_stage = entry.parameters == STAGE and place == 0
        if not _is_name(entry.axis) or entry.size < 2 or not (entry.parameters in KINDS or is_stage):
            raise PlanError(
                f"mesh axis '{entry.axis}' of size {entry.size} with parameters '{entry.parameters}': an "
                f"axis has a plain name, a size of at least 2, and parameters of {', '.join(KINDS)}; "
                f"the first one may have '{STAGE}'."
            )
        if is_stage != (entry.axis == PIPELINE):
            raise PlanError(
                f"mesh axis '{entry.axis}' has parameters '{entry.parameters}': the axis of the stages, and no "
                f"other, is called {PIPELINE}."
            )
    if len({entry.axis for entry in plan.mesh}) != len(plan.mesh):
        raise PlanError("two axes of the plan's mesh have the same name.")


def _is_name(text: str) -> bool:
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def _mesh_is_the_cluster(plan: Plan, cluster: Cluster) -> None:
    ranks = prod(entry.size for entry in plan.mesh)
    if ranks != cluster.devices:
        raise PlanError(f"the plan's mesh has {ranks} ranks, its cluster {cluster.devices} devices.")


def _stages_are_sound(plan: Plan, cluster: Cluster) -> None:
    if not plan.stages:
        raise PlanError("the plan has no stages. Restore them or plan again.")
    for place, stage in enumerate(plan.stages):
        if stage.recompute not in RECOMPUTE_LEVELS or stage.zero not in ZERO_LEVELS:
            raise PlanError(
                f"stage {place} has recompute '{stage.recompute}' and zero {stage.zero}: legal are "
                f"{', '.join(RECOMPUTE_LEVELS)} and {', '.join(map(str, ZERO_LEVELS))}."
            )
        if not stage.segments:
            raise PlanError(f"stage {place} has no segments: give it some, or plan again.")
    if len({stage.zero for stage in plan.stages}) > 1:
        raise PlanError("stages have different ZeRO levels: give them all the same.")


def _zero_suits_the_mesh(plan: Plan, cluster: Cluster) -> None:
    zero = plan.stages[0].zero
    shards = [entry.axis for entry in plan.mesh if entry.parameters == SHARD]
    if shards and zero == 0:
        raise PlanError(
            f"stages have zero 0, but the mesh axis {shards[0]} keeps parameters as '{SHARD}': legal levels are "
            "1, 2 and 3, or give the axis parameters 'replicate'."
        )
    if zero and not shards:
        raise PlanError(
            f"stages have zero {zero}, but no axis of the mesh keeps parameters as '{SHARD}': the only legal level "
            f"is 0, or give a data axis parameters '{SHARD}'."
        )


def _stage_ranks(plan: Plan) -> int:
    return next((entry.size for entry in plan.mesh if entry.parameters == STAGE), 1)


def _stages_are_dealt_to_ranks(plan: Plan, cluster: Cluster) -> None:
    ranks = _stage_ranks(plan)
    if len(plan.stages) % ranks or (ranks == 1 and len(plan.stages) > 1):
        raise PlanError(f"{len(plan.stages)} stages cannot be dealt to {ranks} pipeline ranks.")


def _schedule_runs_the_stages(plan: Plan, cluster: Cluster) -> None:
    ranks, schedule = _stage_ranks(plan), plan.schedule
    chunks = len(plan.stages) // ranks
    several = {"interleaved", "zero-bubble"}
    legal = {"none"} if ranks == 1 else several | ({"gpipe", "1f1b"} if chunks == 1 else set())
    if schedule.name not in legal:
        raise PlanError(
            f"the schedule '{schedule.name}' does not run {len(plan.stages)} stages on {ranks} pipeline "
            f"ranks: legal are {', '.join(sorted(legal))}."
        )
    if ranks > 1 and schedule.microbatches > 0 and not runs(schedule.name, ranks, schedule.microbatches):
        others = sorted(name for name in legal if runs(name, ranks, schedule.microbatches))
        raise PlanError(
            f"the schedule '{schedule.name}' does not run {schedule.microbatches} microbatches on {ranks} pipeline "
            f"ranks: legal are {', '.join(others) or 'none with so many stages a rank'}."
        )


def _ranks_follow_from_the_mesh(plan: Plan, cluster: Cluster) -> None:
    ways = prod(entry.size for entry in plan.mesh if entry.parameters != STAGE)
    for place, stage in enumerate(plan.stages):
        rank = place % _stage_ranks(plan)
        wanted = [rank * ways, (rank + 1) * ways - 1]
        if stage.ranks != wanted:
            raise PlanError(
                f"stage {place} has ranks {stage.ranks}, but the mesh gives it {wanted} (first and last): stages are "
                "dealt to ranks in order. Restore them; to move work, move segments."
            )


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
