"""The actions of one rank without pipeline stages: block after block, forward and back, once a microbatch.

Parameters of a *unit* (a block, or all that is outside blocks) are gathered and their gradients summed together,
as FSDP2 does it: the gather of the next block is issued when a block begins, forward and backward; the gradients
of a block are summed beside the backward of the next one; the optimizer comes when all of them are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cost_models.timeline import COLLECTIVE, COMPUTE, DATA, Action

__all__ = ["Block", "Part", "Step", "Unit", "block_actions", "part_name"]

FORWARD, BACKWARD = "F", "B"


@dataclass(frozen=True, slots=True)
class Part:
    """One operator of a block's forward or backward, or one collective that operators wait for."""

    name: str
    """Unique within this pass of its block."""
    seconds: float
    is_collective: bool = False
    allocates_bytes: int = 0
    frees_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """What runs one after the other, and reads the parameters of one unit."""

    name: str
    """Unique within the step."""
    unit: str
    forward: tuple[Part, ...]
    backward: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that are gathered and reduced together."""

    gather_s: float = 0.0
    """Of one gather."""
    gathered_bytes: int = 0
    """Nothing is gathered where this is 0."""
    is_kept: bool = False
    """What was gathered for the forward stays until the backward is done."""
    slice_reduce_s: float = 0.0
    """Of the gradients of a microbatch that is not the last; 0 where they are added up on each rank."""
    reduce_s: float = 0.0
    """Of the gradients of the last microbatch."""
    gradient_bytes: int = 0
    """Of whole gradients, from the backward until they are reduced; 0 where they stay as they are made."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step."""

    blocks: tuple[Block, ...]
    """In the order of the forward."""
    units: Mapping[str, Unit] = field(default_factory=dict)
    """By name; units that are not named have nothing to gather or reduce."""
    microbatches: int = 1
    gathers_once: bool = False
    """Parameters are gathered once a step, not for every use."""
    overlaps: bool = True
    """Gathers and reductions run on a stream of their own, beside compute."""
    optimizer_s: float = 0.0


def part_name(block: str, part: str, kind: str, microbatch: int) -> str:
    """Name of the action that a part of a block becomes; ``kind`` is ``F`` or ``B``."""
    return f"{block}/{part} {kind}{microbatch}"


def block_actions(step: Step) -> tuple[Action, ...]:
    """Everything that the rank does, in order."""
    return tuple(_Actions(step).all())


@dataclass(frozen=True, slots=True)
class _Visit:
    """One pass over one block."""

    block: Block
    kind: str
    microbatch: int
    gathers: bool
    """The unit is not gathered when the block begins."""
    frees: bool
    """What the unit has gathered goes when the block has ended."""
    reduces: bool
    """It is the last backward of its unit for this microbatch."""


class _Actions:
    """Lists the actions, remembering the last one on the compute stream."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._visits = tuple(_visits(step))
        self._stream = DATA if step.overlaps else COMPUTE
        self._computed: tuple[str, ...] = ()
        self._reduced: tuple[str, ...] = ()
        self._has_gradients: set[str] = set()

    def all(self) -> Iterator[Action]:
        ahead = 1 if self._step.overlaps else 0
        yield from self._gather(0) if ahead else ()
        for place, visit in enumerate(self._visits):
            yield from self._gather(place + ahead)
            yield from self._parts(visit)
            yield from self._reduction(visit)
        if self._step.optimizer_s:
            yield Action(
                "optimizer",
                "OPTIMIZER",
                COMPUTE,
                self._step.optimizer_s,
                needs=self._computed + self._reduced,
            )

    def _gather(self, place: int) -> Iterator[Action]:
        """The gather for a visit, issued when the visit before begins."""
        if place >= len(self._visits) or not self._visits[place].gathers:
            return
        visit = self._visits[place]
        unit = self._step.units[visit.block.unit]
        yield Action(
            _gather_name(visit),
            "UNSHARD",
            self._stream,
            unit.gather_s,
            needs=self._computed,
            allocates_bytes=unit.gathered_bytes,
        )

    def _parts(self, visit: _Visit) -> Iterator[Action]:
        parts = visit.block.forward if visit.kind == FORWARD else visit.block.backward
        unit = self._step.units.get(visit.block.unit, Unit())
        for position, part in enumerate(parts):
            is_first, is_last = position == 0, position == len(parts) - 1
            action = Action(
                part_name(visit.block.name, part.name, visit.kind, visit.microbatch),
                COLLECTIVE if part.is_collective else visit.kind,
                COMPUTE,
                part.seconds,
                needs=(_gather_name(visit),) if is_first and visit.gathers else (),
                allocates_bytes=part.allocates_bytes + (self._gradient_bytes(visit, unit) if is_first else 0),
                frees_bytes=part.frees_bytes + (unit.gathered_bytes if is_last and visit.frees else 0),
            )
            self._computed = (action.name,)
            yield action

    def _gradient_bytes(self, visit: _Visit, unit: Unit) -> int:
        """Of the unit's whole gradients, if this is where they come to be."""
        if visit.kind == FORWARD or visit.block.unit in self._has_gradients:
            return 0
        self._has_gradients.add(visit.block.unit)
        return unit.gradient_bytes

    def _reduction(self, visit: _Visit) -> Iterator[Action]:
        if not visit.reduces:
            return
        unit = self._step.units[visit.block.unit]
        is_last = visit.microbatch == self._step.microbatches - 1
        seconds = unit.reduce_s if is_last else unit.slice_reduce_s
        if not is_last and not seconds:
            return
        self._has_gradients.discard(visit.block.unit)
        name = f"{visit.block.unit or 'root'} REDUCE_GRAD{visit.microbatch}"
        self._reduced = (name,)
        yield Action(
            name, "REDUCE_GRAD", self._stream, seconds, needs=self._computed, frees_bytes=unit.gradient_bytes
        )


def _gather_name(visit: _Visit) -> str:
    return f"{visit.block.name} UNSHARD {visit.kind}{visit.microbatch}"


def _visits(step: Step) -> Iterator[_Visit]:
    """Every pass over every block, with what its unit gathers, frees and reduces around it."""
    passes = [
        (block, kind, microbatch)
        for microbatch in range(step.microbatches)
        for kind in (FORWARD, BACKWARD)
        for block in _in_order(step.blocks, kind)
    ]
    last_of_unit = {(block.unit, microbatch): place for place, (block, _, microbatch) in enumerate(passes)}
    last_of_all = {block.unit: place for place, (block, _, _) in enumerate(passes)}
    gathered: set[str] = set()
    for place, (block, kind, microbatch) in enumerate(passes):
        unit = step.units.get(block.unit, Unit())
        gathers = bool(unit.gathered_bytes) and block.unit not in gathered
        if step.gathers_once:
            frees = place == last_of_all[block.unit]
        else:
            frees = not unit.is_kept or place == last_of_unit[block.unit, microbatch]
        gathered |= {block.unit}
        gathered -= {block.unit} if frees else set()
        reduces = block.unit in step.units and place == last_of_unit[block.unit, microbatch]
        yield _Visit(block, kind, microbatch, gathers, frees and bool(unit.gathered_bytes), reduces)


def _in_order(blocks: Sequence[Block], kind: str) -> Iterator[Block]:
    """Blocks of a pass that do something in it."""
    for block in blocks if kind == FORWARD else reversed(blocks):
        if block.forward if kind == FORWARD else block.backward:
            yield block
