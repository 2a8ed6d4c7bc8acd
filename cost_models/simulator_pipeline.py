"""The actions of a whole pipeline: a schedule's orders, with the seconds and bytes of each stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cost_models.schedule_actions import (
    ScheduledAction,
    partner_of,
    with_gathers,
    with_optimizer,
    with_reductions,
    with_transfers,
)
from cost_models.schedule_orders import compute_orders
from cost_models.timeline import COMPUTE, DATA, TRANSFER_STREAMS, Action

__all__ = ["Pipeline", "StageCost", "pipeline_actions", "scheduled_actions"]

_STREAMS = {**TRANSFER_STREAMS, "UNSHARD": DATA, "REDUCE_GRAD": DATA}
"""Other kinds run on the compute stream."""

_SECONDS = {
    "F": ("forward_s",),
    "B": ("backward_inputs_s", "backward_weights_s"),
    "I": ("backward_inputs_s",),
    "W": ("backward_weights_s",),
    "UNSHARD": ("gather_s",),
    "REDUCE_GRAD": ("reduce_s",),
    "SEND_F": ("send_forward_s",),
    "SEND_B": ("send_backward_s",),
    "OPTIMIZER": ("optimizer_s",),
}
_ALLOCATES = {
    "F": ("activation_bytes", "weight_activation_bytes", "forward_working_bytes"),
    "B": ("backward_working_bytes",),
    "I": ("backward_working_bytes",),
    "UNSHARD": ("gathered_bytes",),
}
_FREES = {
    "F": ("forward_working_bytes",),
    "B": ("activation_bytes", "weight_activation_bytes", "backward_working_bytes"),
    "I": ("activation_bytes", "backward_working_bytes"),
    "W": ("weight_activation_bytes",),
    "RESHARD": ("gathered_bytes",),
}
"""What each kind of action takes, holds and lets go: fields of ``StageCost``."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of the model takes on one rank: for one microbatch, unless said otherwise."""

    forward_s: float
    backward_inputs_s: float
    backward_weights_s: float
    """A backward that is not split takes this and ``backward_inputs_s``."""
    activation_bytes: int = 0
    """Kept from the forward until the backward of inputs."""
    weight_activation_bytes: int = 0
    """Kept from the forward until the backward of weights."""
    forward_working_bytes: int = 0
    """Held only while a forward runs."""
    backward_working_bytes: int = 0
    """Held only while a backward (of inputs) runs."""
    send_forward_s: float = 0.0
    """Of what the next stage needs, where that is on another rank."""
    send_backward_s: float = 0.0
    """Of gradients for the stage before, where that is on another rank."""
    gather_s: float = 0.0
    """Of one gather of the stage's parameters."""
    gathered_bytes: int = 0
    """Of the gathered parameters."""
    reduce_s: float = 0.0
    """Of the sum of the stage's gradients over data ranks, once a step."""
    optimizer_s: float = 0.0
    """Of the update of the stage's parameters, once a step."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How stages are run."""

    schedule: str
    """One of ``cost_models.schedules.SCHEDULES``."""
    ranks: int
    microbatches: int
    gathers: bool = False
    """Parameters of stages are gathered and freed as the schedule comes to them (UNSHARD, RESHARD)."""


def pipeline_actions(stages: Sequence[StageCost], pipeline: Pipeline) -> tuple[tuple[Action, ...], ...]:
    """By rank, everything that a step of ``pipeline`` does; stage ``s`` lies on rank ``s % ranks``.

    Raises ``ValueError`` when the stages are not equally many on all ranks, or the schedule does not take them.
    """
    chunks, left = divmod(len(stages), pipeline.ranks)
    if left:
        raise ValueError(f"{len(stages)} stages do not lie equally on {pipeline.ranks} ranks")
    orders = compute_orders(
        pipeline.schedule, ranks=pipeline.ranks, microbatches=pipeline.microbatches, chunks=chunks
    )
    if pipeline.gathers:
        orders = [with_gathers(order) for order in orders]
    orders = with_transfers([with_reductions(each, pipeline.microbatches) for each in orders], len(stages))
    return scheduled_actions([with_optimizer(order) for order in orders], stages)


def scheduled_actions(
    orders: Sequence[Sequence[ScheduledAction]], stages: Sequence[StageCost]
) -> tuple[tuple[Action, ...], ...]:
    """Actions in the given orders: by rank, as ``with_transfers`` and the like leave them.

    A gather is issued when the action listed before it has ended, so that it runs beside the one listed behind.
    """
    made = frozenset(str(action) for order in orders for action in order)
    ranks = [_RankActions(made, stages) for _ in orders]
    return tuple(tuple(map(rank.action, order)) for rank, order in zip(ranks, orders, strict=True))


class _RankActions:
    """Turns the order of one rank into actions, remembering what came before."""

    def __init__(self, made: frozenset[str], stages: Sequence[StageCost]) -> None:
        self._made, self._stages = made, stages
        self._seen: Counter[str] = Counter()
        self._computed = ""
        """The last action on the compute stream."""
        self._last: dict[tuple[int, str], str] = {}
        """Name of the last action by stage and kind."""

    def action(self, scheduled: ScheduledAction) -> Action:
        text, stream = str(scheduled), _STREAMS.get(scheduled.kind, COMPUTE)
        self._seen[text] += 1
        name = text if self._seen[text] == 1 else f"{text} again {self._seen[text] - 1}"
        stage = self._stages[scheduled.stage]
        action = Action(
            name=name,
            kind=scheduled.kind,
            stream=stream,
            seconds=sum(getattr(stage, field) for field in _SECONDS.get(scheduled.kind, ())),
            needs=tuple(filter(None, self._needs(scheduled))),
            partner=str(partner_of(scheduled) or ""),
            allocates_bytes=sum(getattr(stage, field) for field in _ALLOCATES.get(scheduled.kind, ())),
            frees_bytes=sum(getattr(stage, field) for field in _FREES.get(scheduled.kind, ())),
        )
        self._last[scheduled.stage, scheduled.kind] = name
        self._computed = name if stream == COMPUTE else self._computed
        return action

    def _needs(self, scheduled: ScheduledAction) -> Iterator[str]:
        stage, microbatch = scheduled.stage, scheduled.microbatch
        match scheduled.kind:
            case "F":
                yield self._last.get((stage, "UNSHARD"), "")
                yield self._first(f"{stage}RECV_F{microbatch}", f"{stage - 1}F{microbatch}")
            case "B" | "I":
                yield self._last.get((stage, "UNSHARD"), "")
                yield self._first(f"{stage}RECV_B{microbatch}", *_backwards(stage + 1, microbatch))
            case "W":
                yield self._last.get((stage, "UNSHARD"), "")
            case "SEND_F":
                yield f"{stage}F{microbatch}"
            case "SEND_B":
                yield self._first(*_backwards(stage, microbatch))
            case "UNSHARD" | "REDUCE_GRAD":
                yield self._computed
            case "OPTIMIZER":
                yield self._last.get((stage, "REDUCE_GRAD"), "")

    def _first(self, *names: str) -> str:
        """The first of ``names`` that some rank does; empty where there is none."""
        return next((name for name in names if name in self._made), "")


def _backwards(stage: int, microbatch: int | None) -> tuple[str, str]:
    """What may have made the gradient of the inputs of ``stage``."""
    return f"{stage}B{microbatch}", f"{stage}I{microbatch}"
