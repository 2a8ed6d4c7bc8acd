"""What a pipeline rank does, one action after the other, in the words and the text of torch.distributed.pipelining.

Schedules are made of computing actions; what has to be sent, gathered and reduced in between follows from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "KINDS",
    "ScheduledAction",
    "parse_action",
    "partner_of",
    "with_gathers",
    "with_optimizer",
    "with_reductions",
    "with_transfers",
]

KINDS: dict[str, str] = {
    "F": "forward",
    "B": "backward",
    "I": "backward of inputs",
    "W": "backward of weights",
    "UNSHARD": "gather parameters",
    "RESHARD": "free gathered parameters",
    "SEND_F": "send activations",
    "RECV_F": "receive activations",
    "SEND_B": "send gradients",
    "RECV_B": "receive gradients",
    "REDUCE_GRAD": "sum gradients over data ranks",
    "OPTIMIZER": "update parameters",
}
"""Words for actions, as torch.distributed.pipelining has them; ``OPTIMIZER`` is ours."""

_FORM = re.compile(rf"(\d+)({'|'.join(sorted(KINDS, key=len, reverse=True))})(\d*)")
_ACTIVE_STAGES = 3
"""Stages of a rank whose parameters are gathered at once: one forward, one backward, one ahead (torch's choice)."""


@dataclass(frozen=True, slots=True)
class ScheduledAction:
    """One action of a schedule; as text ``2F0``: the forward of stage 2 on microbatch 0."""

    stage: int
    """Stages count through the whole model; stage ``s`` of a pipeline of R ranks lies on rank ``s % R``."""
    kind: str
    """A word of ``KINDS``."""
    microbatch: int | None = None
    """None for what is done for all of them together."""

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{'' if self.microbatch is None else self.microbatch}"


Order = Sequence[ScheduledAction]
"""What one rank does, first to last."""


def parse_action(text: str) -> ScheduledAction:
    """The action that ``text`` (``2F0``, ``1UNSHARD``, ``3SEND_F1``) says. Raises ``ValueError``."""
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise ValueError(
            f"{text!r} is no action: actions are STAGE KIND MICROBATCH, as in 2F0, with a kind of {', '.join(KINDS)}"
        )
    stage, kind, microbatch = form.groups()
    return ScheduledAction(int(stage), kind, int(microbatch) if microbatch else None)


def with_reductions(order: Order, microbatches: int) -> list[ScheduledAction]:
    """Each stage's gradients are reduced right after its last backward, as torch does it."""
    done: Counter[int] = Counter()
    actions = []
    for action in order:
        actions.append(action)
        done[action.stage] += action.kind in ("B", "W")
        if action.kind in ("B", "W") and done[action.stage] == microbatches:
            actions.append(ScheduledAction(action.stage, "REDUCE_GRAD"))
    return actions


def with_optimizer(order: Order) -> list[ScheduledAction]:
    """The parameters of each stage of a rank are updated when everything else is done."""
    stages = sorted({action.stage for action in order})
    return [*order, *(ScheduledAction(stage, "OPTIMIZER") for stage in stages)]


def with_gathers(order: Order, active_stages: int = _ACTIVE_STAGES) -> list[ScheduledAction]:
    """Parameters of the next ``active_stages`` stages are gathered ahead, and those of others freed.

    As torch does it, except that it frees stages in the order of a Python set, this in the order of gathering.
    """
    gathered: dict[int, None] = {}
    actions = []
    for action, wanted in zip(order, _next_stages(order, active_stages), strict=True):
        for stage in [stage for stage in gathered if stage not in wanted]:
            del gathered[stage]
            actions.append(ScheduledAction(stage, "RESHARD"))
        for stage in [stage for stage in wanted if stage not in gathered]:
            gathered[stage] = None
            actions.append(ScheduledAction(stage, "UNSHARD"))
        actions.append(action)
    return [*actions, *(ScheduledAction(stage, "RESHARD") for stage in gathered)]


def _next_stages(order: Order, count: int) -> list[list[int]]:
    """By action, the first ``count`` different stages from it on."""
    found: list[list[int]] = []
    ahead: list[int] = []
    for action in reversed(order):
        ahead = [action.stage, *(stage for stage in ahead if stage != action.stage)]
        found.append(ahead[:count])
    return found[::-1]


def with_transfers(orders: Sequence[Order], stages: int) -> list[list[ScheduledAction]]:
    """A send behind every action whose result another rank needs, and the receive on that rank.

    A rank lists a receive where it would be if each rank did one action a turn (torch's order): then sends and
    receives can be issued in the listed order without waiting in a circle. Raises ``ValueError`` when the orders
    do not fit together: some rank needs what nobody makes before.
    """
    ranks = len(orders)
    result: list[list[ScheduledAction]] = [[] for _ in orders]
    there: set[ScheduledAction] = set()
    """Computed, or received where another rank computed it."""
    positions = [0] * ranks
    while any(position < len(order) for position, order in zip(positions, orders, strict=True)):
        before = list(positions)
        for rank, order in enumerate(orders):
            if positions[rank] < len(order) and _is_ready(order[positions[rank]], stages, there):
                action = order[positions[rank]]
                positions[rank] += 1
                there.add(action)
                result[rank].append(action)
                for place, transfer in _transfers(action, stages, ranks):
                    result[rank if place is None else place].append(transfer)
        if positions == before:
            heads = [str(order[p]) for p, order in zip(positions, orders, strict=True) if p < len(order)]
            raise ValueError(f"the schedule does not go on: {', '.join(heads)} need what comes after them")
    return result


def _is_ready(action: ScheduledAction, stages: int, there: set[ScheduledAction]) -> bool:
    stage, microbatch = action.stage, action.microbatch
    if action.kind == "F":
        return stage == 0 or ScheduledAction(stage - 1, "F", microbatch) in there
    if action.kind in ("B", "I") and stage < stages - 1:
        return any(ScheduledAction(stage + 1, kind, microbatch) in there for kind in ("B", "I"))
    return True


def _transfers(
    action: ScheduledAction, stages: int, ranks: int
) -> Iterator[tuple[int | None, ScheduledAction]]:
    """(rank or None for the action's own, send or receive) that ``action`` entails."""
    stage, microbatch = action.stage, action.microbatch
    if action.kind == "F":
        peer, suffix = stage + 1, "F"
    elif action.kind in ("B", "I"):
        peer, suffix = stage - 1, "B"
    else:
        return
    if 0 <= peer < stages and peer % ranks != stage % ranks:
        yield None, ScheduledAction(stage, f"SEND_{suffix}", microbatch)
        yield peer % ranks, ScheduledAction(peer, f"RECV_{suffix}", microbatch)


def partner_of(scheduled: ScheduledAction) -> ScheduledAction | None:
    """The receive of a send, and the other way; None for anything else."""
    stage, microbatch = scheduled.stage, scheduled.microbatch
    match scheduled.kind:
        case "SEND_F":
            return ScheduledAction(stage + 1, "RECV_F", microbatch)
        case "RECV_F":
            return ScheduledAction(stage - 1, "SEND_F", microbatch)
        case "SEND_B":
            return ScheduledAction(stage - 1, "RECV_B", microbatch)
        case "RECV_B":
            return ScheduledAction(stage + 1, "SEND_B", microbatch)
    return None
