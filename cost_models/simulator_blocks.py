"""The actions of a step, block by block: operators, the gathers and sums of their parameters, sends between stages.

Parameters of a *unit* (a block, or all that is outside blocks) are gathered and their gradients summed together,
as FSDP2 does it: the gather for the next block is issued when a block begins, forward and backward; the gradients
of a block are summed beside what comes behind it; the optimizer runs when all of them are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cost_models.schedule_actions import ScheduledAction, partner_of, with_transfers
from cost_models.schedule_orders import compute_orders
from cost_models.timeline import COLLECTIVE, COMPUTE, DATA, TRANSFER_STREAMS, Action

__all__ = ["Block", "Part", "Stage", "Step", "Unit", "part_name", "step_actions"]


@dataclass(frozen=True, slots=True)
class Part:
    """One operator of a block's forward or backward, or one collective that operators wait for."""

    name: str
    """Unique within this pass of its block."""
    seconds: float
    is_collective: bool = False
    allocates_bytes: int = 0
    frees_bytes: int = 0
    weights_share: float = 0.0
    """Of a backward's seconds: what goes into gradients of weights, where these are made by themselves."""


@dataclass(frozen=True, slots=True)
class Block:
    """What runs one after the other, and reads the parameters of one unit."""

    name: str
    """Unique within the step."""
    unit: str
    forward: tuple[Part, ...]
    backward: tuple[Part, ...]

    def parts(self, kind: str) -> tuple[Part, ...]:
        """What runs in a pass of this kind: ``F``, ``B``, or ``I`` and ``W`` where the backward is split."""
        match kind:
            case "F":
                return self.forward
            case "I":
                return tuple(_inputs(part) for part in self.backward)
            case "W":
                return tuple(_weights(part) for part in self.backward if part.weights_share)
        return self.backward


def _inputs(part: Part) -> Part:
    frees = 0 if part.weights_share else part.frees_bytes
    seconds = part.seconds * (1.0 - part.weights_share)
    return Part(part.name, seconds, part.is_collective, part.allocates_bytes, frees)


def _weights(part: Part) -> Part:
    return Part(part.name, part.seconds * part.weights_share, part.is_collective, 0, part.frees_bytes)


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that are gathered and reduced together."""

    gather_s: float = 0.0
    """Of one gather."""
    gathered_bytes: int = 0
    """Nothing is gathered where this is 0."""
    is_kept: bool = False
    """What was gathered for a microbatch's forward stays until its backward is done."""
    slice_reduce_s: float = 0.0
    """Of the gradients of a microbatch that is not the last; 0 where they are added up on each rank."""
    reduce_s: float = 0.0
    """Of the gradients of the last microbatch."""
    gradient_bytes: int = 0
    """Of whole gradients, from the backward until they are reduced; 0 where they stay as they are made."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks on one pipeline rank."""

    blocks: tuple[Block, ...]
    """In the order of the forward."""
    send_forward_s: float = 0.0
    """Of what the next stage needs of one microbatch."""
    send_backward_s: float = 0.0
    """Of what the stage before needs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A whole step; stage ``s`` lies on pipeline rank ``s % ranks``."""

    stages: tuple[Stage, ...]
    units: Mapping[str, Unit] = field(default_factory=dict)
    """By name, each on one rank only; units that are not named have nothing to gather or reduce."""
    optimizer_s: tuple[float, ...] = (0.0,)
    """By pipeline rank."""
    microbatches: int = 1
    schedule: str = "1f1b"
    gathers_once: bool = False
    """Parameters are gathered once a step, not for every use."""
    overlaps: bool = True
    """Gathers and sums run on a stream of their own, beside compute."""

    @property
    def ranks(self) -> int:
        return len(self.optimizer_s)


def part_name(block: str, part: str, kind: str, microbatch: int) -> str:
    """Name of the action that a part of a block becomes in a pass of this kind."""
    return f"{block}/{part} {kind}{microbatch}"


def step_actions(step: Step) -> tuple[tuple[Action, ...], ...]:
    """By pipeline rank, everything that it does, in order.

    Each pass of a stage ends with an action of no seconds that is named after it: ``2F0``. Raises
    ``ValueError`` when the stages do not lie equally on the ranks, or the schedule does not take them.
    """
    chunks, left = divmod(len(step.stages), step.ranks)
    if left:
        raise ValueError(f"{len(step.stages)} stages do not lie equally on {step.ranks} ranks")
    orders = compute_orders(step.schedule, ranks=step.ranks, microbatches=step.microbatches, chunks=chunks)
    orders = with_transfers(orders, len(step.stages))
    made = frozenset(str(action) for order in orders for action in order)
    return tuple(tuple(_Rank(step, rank, order, made).actions()) for rank, order in enumerate(orders))


@dataclass(frozen=True, slots=True)
class _Visit:
    """One pass over one block."""

    block: Block
    scheduled: ScheduledAction
    gathers: bool
    """The unit is not gathered when the block begins."""
    frees: bool
    """What the unit has gathered goes when the block has ended."""
    reduces_s: float | None
    """Of the sum of the unit's gradients after it; None where they are not summed now."""

    @property
    def gather_name(self) -> str:
        return f"{self.block.name} UNSHARD {self.scheduled.kind}{self.scheduled.microbatch}"


class _Rank:
    """Lists the actions of one rank, remembering the last one on the compute stream."""

    def __init__(self, step: Step, rank: int, order: Sequence[ScheduledAction], made: frozenset[str]) -> None:
        self._step, self._rank, self._order, self._made = step, rank, order, made
        self._visits = tuple(_visits(step, order))
        self._stream = DATA if step.overlaps else COMPUTE
        self._place = 0
        """Of the next visit."""
        self._computed: tuple[str, ...] = ()
        self._reduced: tuple[str, ...] = ()
        self._awaited: tuple[str, ...] = ()
        """What the next action on the compute stream needs."""
        self._has_gradients: set[str] = set()

    def actions(self) -> Iterator[Action]:
        if self._step.overlaps:
            yield from self._gather(0)
        for scheduled in self._order:
            if scheduled.kind in TRANSFER_STREAMS:
                yield self._transfer(scheduled)
            else:
                yield from self._pass(scheduled)
        if self._step.optimizer_s[self._rank]:
            name = "optimizer" if self._step.ranks == 1 else f"optimizer of rank {self._rank}"
            yield self._compute(name, "OPTIMIZER", self._step.optimizer_s[self._rank], self._reduced)

    def _transfer(self, scheduled: ScheduledAction) -> Action:
        stage, partner = self._step.stages[scheduled.stage], partner_of(scheduled)
        seconds = {"SEND_F": stage.send_forward_s, "SEND_B": stage.send_backward_s}.get(scheduled.kind, 0.0)
        return Action(
            str(scheduled),
            scheduled.kind,
            TRANSFER_STREAMS[scheduled.kind],
            seconds,
            needs=self._computed if scheduled.kind.startswith("SEND") else (),
            partner=str(partner),
        )

    def _pass(self, scheduled: ScheduledAction) -> Iterator[Action]:
        self._awaited = tuple(name for name in _inputs_of(scheduled) if name in self._made)[:1]
        while self._place < len(self._visits) and self._visits[self._place].scheduled == scheduled:
            visit = self._visits[self._place]
            yield from self._gather(self._place + 1 if self._step.overlaps else self._place)
            yield from self._parts(visit)
            yield from self._reduction(visit)
            self._place += 1
        yield self._compute(str(scheduled), scheduled.kind, 0.0)

    def _compute(
        self,
        name: str,
        kind: str,
        seconds: float,
        needs: tuple[str, ...] = (),
        held: tuple[int, int] = (0, 0),
    ) -> Action:
        """An action on the compute stream that allocates and frees the bytes ``held``."""
        needs, self._awaited, self._computed = (*self._awaited, *needs), (), (name,)
        return Action(name, kind, COMPUTE, seconds, needs, allocates_bytes=held[0], frees_bytes=held[1])

    def _gather(self, place: int) -> Iterator[Action]:
        """The gather for a visit, issued when the visit before begins."""
        if place < len(self._visits) and self._visits[place].gathers:
            visit = self._visits[place]
            unit = self._step.units[visit.block.unit]
            yield Action(
                visit.gather_name,
                "UNSHARD",
                self._stream,
                unit.gather_s,
                needs=self._computed,
                allocates_bytes=unit.gathered_bytes,
            )

    def _parts(self, visit: _Visit) -> Iterator[Action]:
        kind, microbatch = visit.scheduled.kind, visit.scheduled.microbatch
        unit, parts = self._step.units.get(visit.block.unit, Unit()), visit.block.parts(kind)
        for position, part in enumerate(parts):
            allocates, frees = part.allocates_bytes, part.frees_bytes
            if position == 0:
                allocates += self._new_gradient_bytes(visit, unit)
            if position == len(parts) - 1 and visit.frees:
                frees += unit.gathered_bytes
            yield self._compute(
                part_name(visit.block.name, part.name, kind, microbatch or 0),
                COLLECTIVE if part.is_collective else kind,
                part.seconds,
                (visit.gather_name,) if visit.gathers and position == 0 else (),
                (allocates, frees),
            )

    def _new_gradient_bytes(self, visit: _Visit, unit: Unit) -> int:
        """Of the unit's whole gradients, if this is where they come to be."""
        if visit.scheduled.kind not in ("B", "W") or visit.block.unit in self._has_gradients:
            return 0
        self._has_gradients.add(visit.block.unit)
        return unit.gradient_bytes

    def _reduction(self, visit: _Visit) -> Iterator[Action]:
        if visit.reduces_s is None:
            return
        unit = self._step.units[visit.block.unit]
        self._has_gradients.discard(visit.block.unit)
        name = f"{visit.block.unit} REDUCE_GRAD{visit.scheduled.microbatch}"
        self._reduced = (name,)
        yield Action(
            name,
            "REDUCE_GRAD",
            self._stream,
            visit.reduces_s,
            needs=self._computed,
            frees_bytes=unit.gradient_bytes,
        )


def _inputs_of(scheduled: ScheduledAction) -> tuple[str, ...]:
    """Actions of which the first that exists brings what a pass needs from other stages."""
    stage, microbatch = scheduled.stage, scheduled.microbatch
    match scheduled.kind:
        case "F":
            return f"{stage}RECV_F{microbatch}", f"{stage - 1}F{microbatch}"
        case "B" | "I":
            return f"{stage}RECV_B{microbatch}", f"{stage + 1}B{microbatch}", f"{stage + 1}I{microbatch}"
    return ()


def _visits(step: Step, order: Sequence[ScheduledAction]) -> Iterator[_Visit]:
    """Every pass of a rank over every block, with what its unit gathers, frees and reduces around it."""
    passes = [
        (block, scheduled)
        for scheduled in order
        if scheduled.kind not in TRANSFER_STREAMS
        for block in _blocks_of(step.stages[scheduled.stage], scheduled.kind)
    ]
    last_of_slice = {(block.unit, each.microbatch): place for place, (block, each) in enumerate(passes)}
    last_of_all = {block.unit: place for place, (block, _) in enumerate(passes)}
    gathered: set[str] = set()
    for place, (block, scheduled) in enumerate(passes):
        unit = step.units.get(block.unit, Unit())
        is_last_of_slice = place == last_of_slice[block.unit, scheduled.microbatch]
        is_last = place == last_of_all[block.unit]
        gathers = bool(unit.gathered_bytes) and block.unit not in gathered
        frees = is_last if step.gathers_once else is_last_of_slice or is_last or not unit.is_kept
        gathered |= {block.unit}
        gathered -= {block.unit} if frees else set()
        reduces_s = unit.reduce_s if is_last else unit.slice_reduce_s or None
        yield _Visit(
            block,
            scheduled,
            gathers,
            frees and bool(unit.gathered_bytes),
            reduces_s if is_last_of_slice and block.unit in step.units else None,
        )


def _blocks_of(stage: Stage, kind: str) -> Iterator[Block]:
    """Blocks of a stage that do something in a pass of this kind, in its order."""
    for block in stage.blocks if kind == "F" else reversed(stage.blocks):
        if block.parts(kind):
            yield block
