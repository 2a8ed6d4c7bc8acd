"""A plan as the simulator plays it: blocks of operators and collectives, and what each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autopar.capture.graph import SegmentCall
from autopar.report.anatomy import Anatomy
from autopar.report.step_pieces import Fact, Piece, pieces_of_calls
from autopar.report.step_units import units_of
from cost_models.simulator_blocks import Block, Part, Step, part_name

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
    """``forward`` or ``backward``, and of which microbatch."""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one rank does in a step of a plan; all ranks of the plan do the same."""

    step: Step
    details: Mapping[str, Detail]
    """By name of the action; gathers, sums and the optimizer have none."""
    resting_bytes: int
    """Held all the time: parameters, gradients, optimizer state, context and buffers."""


def planned_step(opened: Anatomy, most_parts: int = MOST_PARTS) -> PlannedStep:
    """The step that a plan predicts; if it has more than ``most_parts``, the operators of a block are one.

    The plan's activations are spread over the operators by what they write; they are freed with the backward
    of the operator, or of the first one before it that has one.
    """
    realized, execution = opened.realized, opened.prices.execution
    names = _call_names(opened.sharded.graph.calls)
    pieces = pieces_of_calls(opened)
    if 2 * execution.microbatches * sum(map(len, pieces)) > most_parts:
        pieces = tuple(tuple(_merged(each)) for each in pieces)
    made_bytes = sum(piece.made_bytes for each in pieces for piece in each)
    share = realized.memory.activations / made_bytes if made_bytes else 0.0
    blocks = [
        _block(name, call.module, each, share)
        for name, call, each in zip(names, opened.sharded.graph.calls, pieces, strict=True)
    ]
    step = Step(
        tuple(_with_temporaries(blocks, pieces, realized.memory.temporaries)),
        units_of(opened),
        microbatches=execution.microbatches,
        gathers_once=execution.zero < 3,
        overlaps=opened.prices.cluster.device.kind == "cuda",
        optimizer_s=sum(realized.upkeep_s.values()) - realized.traffic_s,
    )
    memory = realized.memory
    resting = memory.parameters + memory.gradients + memory.optimizer + memory.overhead
    return PlannedStep(step, dict(_details(blocks, pieces, execution.microbatches)), resting)


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
            )


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
            yield Part(piece.name, piece.backward_s, piece.is_collective, frees_bytes=frees)
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
    blocks: Sequence[Block], pieces: Sequence[Sequence[Piece]], microbatches: int
) -> Iterator[tuple[str, Detail]]:
    for block, each in zip(blocks, pieces, strict=True):
        for microbatch in range(microbatches):
            for kind, direction in (("F", "forward"), ("B", "backward")):
                suffix = f" {microbatch}" if microbatches > 1 else ""
                for piece in each:
                    name = part_name(block.name, piece.name, kind, microbatch)
                    yield name, Detail(piece.label, block.name, direction + suffix, piece.facts)
