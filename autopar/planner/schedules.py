"""Which pipeline schedules may run so many stages and microbatches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from autopar.planner.pins import Pins
from cost_models.schedules import microbatches_in_flight, microbatches_per_round

__all__ = ["in_flight_by_rank", "runs", "schedules"]

CHUNKS = (2, 4)
"""Stages of one rank that are tried with interleaved schedules."""


def schedules(pins: Pins, ranks: int, microbatches: int, segments: int) -> Iterator[tuple[str, int]]:
    """Schedules to try, with the stages each rank then has.

    Zero-bubble is for pins: it splits the backward of every operator, which ``torch.compile`` does not. GPipe is
    too: 1F1B takes as long and holds less, except for fewer microbatches than ranks, where torch has no 1F1B.
    """
    for schedule, chunks in _wanted(pins, ranks, microbatches):
        if ranks * chunks <= segments and runs(schedule, ranks, microbatches):
            yield schedule, chunks


def _wanted(pins: Pins, ranks: int, microbatches: int) -> Iterator[tuple[str, int]]:
    if pins.schedule in ("gpipe", "1f1b"):
        yield pins.schedule, 1
    elif pins.schedule is None and pins.chunks in (None, 1):
        yield ("1f1b" if microbatches >= ranks else "gpipe"), 1
    if pins.schedule == "zero-bubble":
        yield "zero-bubble", pins.chunks or 1
    if pins.schedule == "interleaved" or (pins.schedule is None and pins.chunks != 1):
        for chunks in (pins.chunks,) if pins.chunks else CHUNKS:
            yield "interleaved", chunks


def runs(schedule: str, ranks: int, microbatches: int) -> bool:
    """True when so many ranks can play a schedule with so many microbatches: torch's own conditions."""
    if schedule == "1f1b":
        return microbatches >= ranks
    is_round = microbatches % microbatches_per_round(ranks, microbatches) == 0
    return schedule == "gpipe" or is_round


@cache
def in_flight_by_rank(schedule: str, ranks: int, microbatches: int, chunks: int) -> tuple[float, ...]:
    """Microbatches that each pipeline rank holds at its fullest moment; one without a pipeline."""
    if ranks == 1:
        return (1.0,)
    return tuple(
        microbatches_in_flight(schedule, stages=ranks, stage=rank, microbatches=microbatches, chunks=chunks)
        for rank in range(ranks)
    )
