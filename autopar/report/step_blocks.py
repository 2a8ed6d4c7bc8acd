"""A plan as the simulator plays it: blocks of operators and collectives, and what each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autopar.capture.graph import SegmentCall
from autopar.report.anatomy import Anatomy
from autopar.report.step_pieces import Fact, Piece, pieces_of_calls
from autopar.report.step_units import optimizer_s, unit_name, units_of
from autopar.report.step_wires import wires_s
from cost_models.schedule_actions import KINDS
from cost_models.schedules import microbatches_in_flight
from cost_models.simulator_blocks import Block, Part, Stage, Step, part_name

__all__ = ["Detail", "PlannedStep", "planned_step"]

MOST_PARTS = 50_000
"""Of a step that is shown operator by operator: more would be slow to look at."""

_MERGED = {False: "operators", True: "collectives"}


@dataclass(frozen=True, slots=True)
class Detail:
    """What an action of the step is."""

    label: str
    """As a trace shows it."""
    block: str
    direction: str
    """Forward or backward, and of which microbatch."""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a step of a plan does on each pipeline rank; the ranks of a stage's submesh do the same."""

    step: Step
    details: Mapping[str, Detail]
    """By name of the action; gathers, sums and the optimizer have none."""
    resting_bytes: tuple[int, ...]
    """By pipeline rank, held all the time: parameters, gradients, optimizer state, context and buffers."""


def planned_step(opened: Anatomy, most_parts: int = MOST_PARTS) -> PlannedStep:
    """The step that a plan predicts; if it has more than ``most_parts``, the operators of a block are one.

    The plan's activations are spread over the operators by what they write; they are freed with the backward
    of the operator, or of the first one before it that has one. On CPUs sends take time of both ends' compute.
    """
    execution, memories = opened.prices.execution, opened.plan.predicted.memory
    overlaps = opened.prices.cluster.device.kind == "cuda"
    wires = wires_s(opened)
    pieces = pieces_of_calls(opened)
    if 2 * execution.microbatches * sum(map(len, pieces)) > most_parts:
        pieces = tuple(tuple(_merged(each)) for each in pieces)
    pieces = pieces if overlaps else _with_sends(pieces, wires, opened)
    blocks = _blocks(pieces, opened)
    step = Step(
        tuple(_stages(blocks, wires if overlaps else (0.0,) * len(wires), opened)),
        units_of(opened),
        optimizer_s(opened),
        execution.microbatches,
        opened.sharded.schedule if opened.sharded.stage_ranks > 1 else "1f1b",
        gathers_once=execution.zero < 3,
        overlaps=overlaps,
    )
    resting = tuple(each.parameters_bytes + each.gradients_bytes + each.optimizer_bytes for each in memories)
    return PlannedStep(step, dict(_details(blocks, pieces, step)), resting)


def _stages(blocks: Sequence[Block], wires: Sequence[float], opened: Anatomy) -> Iterator[Stage]:
    ends = (0.0, *wires, 0.0)
    for place, stage in enumerate(opened.sharded.stages):
        mine = blocks[stage.calls[0] : stage.calls[1] + 1]
        yield Stage(tuple(mine), send_forward_s=ends[place + 1], send_backward_s=ends[place])


def _with_sends(
    pieces: Sequence[tuple[Piece, ...]], wires: Sequence[float], opened: Anatomy
) -> tuple[tuple[Piece, ...], ...]:
    """The first call of a stage receives, its last one sends, and the other way in the backward."""
    found = list(pieces)
    for cut, (stage, seconds) in enumerate(zip(opened.sharded.stages, wires, strict=False)):
        last = stage.calls[1]
        to, back = f"send to stage {cut + 1}", f"receive from stage {cut}"
        found[last] = (*found[last], Piece(to, to, seconds, seconds, {}, is_collective=True))
        found[last + 1] = (Piece(back, back, seconds, seconds, {}, is_collective=True), *found[last + 1])
    return tuple(found)


def _blocks(pieces: Sequence[Sequence[Piece]], opened: Anatomy) -> list[Block]:
    """A block for each call, with what it keeps and the temporaries of its pipeline rank."""
    calls, sharded = opened.sharded.graph.calls, opened.sharded
    names = _call_names(calls)
    found: list[Block] = []
    for rank, memory in enumerate(opened.plan.predicted.memory):
        mine = [
            place
            for stage in sharded.stages[rank :: sharded.stage_ranks]
            for place in range(stage.calls[0], stage.calls[1] + 1)
        ]
        made_bytes = sum(piece.made_bytes for place in mine for piece in pieces[place])
        kept_bytes = memory.activations_bytes / _in_flight(rank, opened)
        share = kept_bytes / made_bytes if made_bytes else 0.0
        blocks = [
            _block(names[place], unit_name(calls[place].module, rank, opened), pieces[place], share)
            for place in mine
        ]
        found += _with_temporaries(blocks, [pieces[place] for place in mine], memory.temporaries_bytes)
    places = {name: place for place, name in enumerate(names)}
    return sorted(found, key=lambda block: places[block.name])


def _in_flight(rank: int, opened: Anatomy) -> float:
    """Microbatches whose activations the plan counts on a pipeline rank."""
    sharded = opened.sharded
    if sharded.stage_ranks == 1:
        return 1.0
    return microbatches_in_flight(
        sharded.schedule,
        stages=sharded.stage_ranks,
        stage=rank,
        microbatches=opened.prices.execution.microbatches,
        chunks=len(sharded.stages) // sharded.stage_ranks,
    )


def _call_names(calls: Sequence[SegmentCall]) -> tuple[str, ...]:
    """A name for each call, no two alike: ``layers.3``, or the type's where it is a run of the root module."""
    seen: dict[str, int] = {}
    names = []
    for call in calls:
        base = call.module or call.type
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base} ({seen[base]})")
    return tuple(names)


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """All operators as one, and all collectives."""
    for is_collective, label in _MERGED.items():
        members = [piece for piece in pieces if piece.is_collective == is_collective]
        if members:
            yield Piece(
                label,
                label,
                sum(piece.forward_s for piece in members),
                sum(piece.backward_s for piece in members),
                {"count": len(members)},
                is_collective,
                sum(piece.made_bytes for piece in members),
                max(piece.gradient_bytes for piece in members),
                _weights_share(members),
            )


def _weights_share(pieces: Sequence[Piece]) -> float:
    backward_s = sum(piece.backward_s for piece in pieces)
    weights_s = sum(piece.backward_s * piece.weights_share for piece in pieces)
    return weights_s / backward_s if backward_s else 0.0


def _block(name: str, unit: str, pieces: Sequence[Piece], share: float) -> Block:
    """``share`` is what autograd keeps of each byte that operators write."""
    backward = tuple(_backward(pieces, share))
    kept = share if backward else 0.0
    forward = tuple(
        Part(piece.name, piece.forward_s, piece.is_collective, round(kept * piece.made_bytes))
        for piece in pieces
        if piece.forward_s or not piece.is_collective
    )
    return Block(name, unit, forward, backward)


def _backward(pieces: Sequence[Piece], share: float) -> Iterator[Part]:
    pending, left = 0, sum(1 for piece in pieces if piece.backward_s)
    kept = [round(share * piece.made_bytes) for piece in pieces]
    for position in reversed(range(len(pieces))):
        piece = pieces[position]
        pending += kept[position]
        if piece.backward_s:
            left -= 1
            frees = pending + (0 if left else sum(kept[:position]))
            share_of_weights = piece.weights_share
            yield Part(piece.name, piece.backward_s, piece.is_collective, 0, frees, share_of_weights)
            pending = 0


def _with_temporaries(
    blocks: Sequence[Block], pieces: Sequence[Sequence[Piece]], temporary_bytes: int
) -> Iterator[Block]:
    """The first of the backwards that make the most gradients holds the plan's temporaries."""
    gradients = {
        (block.name, piece.name): piece.gradient_bytes
        for block, each in zip(blocks, pieces, strict=True)
        for piece in each
        if piece.backward_s
    }
    heaviest = max(reversed(gradients), key=lambda place: gradients[place], default=None)
    for block in blocks:
        yield replace(
            block,
            backward=tuple(
                _holding(part, temporary_bytes) if (block.name, part.name) == heaviest else part
                for part in block.backward
            ),
        )


def _holding(part: Part, temporary_bytes: int) -> Part:
    return replace(
        part,
        allocates_bytes=part.allocates_bytes + temporary_bytes,
        frees_bytes=part.frees_bytes + temporary_bytes,
    )


def _details(
    blocks: Sequence[Block], pieces: Sequence[Sequence[Piece]], step: Step
) -> Iterator[tuple[str, Detail]]:
    kinds = ("F", "I", "W") if step.schedule == "zero-bubble" else ("F", "B")
    for block, each in zip(blocks, pieces, strict=True):
        for microbatch in range(step.microbatches):
            suffix = f" {microbatch}" if step.microbatches > 1 else ""
            for kind in kinds:
                for piece in each:
                    name = part_name(block.name, piece.name, kind, microbatch)
                    yield name, Detail(piece.label, block.name, KINDS[kind] + suffix, piece.facts)
