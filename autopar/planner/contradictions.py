"""Pins that contradict each other, the cluster or the model, and what would be legal in their place.

What pins leave open is a set of splits of the devices. Each rule strikes out the splits that it forbids; the rule
that strikes out the last one is what the user is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from autopar.errors import PinError
from autopar.planner.execution import RECOMPUTE_LEVELS
from autopar.planner.pins import ROLES, ZERO_LEVELS, Pins
from autopar.planner.schedules import schedules
from autopar.planner.splits import Split, divisors, splits
from cost_models.schedules import SCHEDULES

__all__ = ["Facts", "check_pins"]

MOST_SHOWN = 8
"""Legal values that a message lists."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What pins must suit."""

    devices: int
    batch: int
    sequences: tuple[int, ...]
    """Lengths of the sequences among the inputs."""
    calls: int
    """Segment calls of the model: the most stages that it can be cut into."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that a split must do, and what is said when none does."""

    holds: Callable[[Facts, Pins, Split], bool]
    problem: Callable[[Facts, Pins, Sequence[Split]], str]
    """In words, of the splits that all rules before it leave."""


def check_pins(facts: Facts, pins: Pins) -> None:
    """Raise ``PinError`` naming what contradicts what, the numbers, and every legal value of each pin."""
    if not pins.items:
        return
    left = list(splits(facts.devices, pins))
    if not left:
        raise PinError(f"{_product_problem(facts, pins)} {_legal(facts, pins)}")
    for rule in RULES:
        kept = [split for split in left if rule.holds(facts, pins, split)]
        if not kept:
            raise PinError(f"{rule.problem(facts, pins, left)} {_legal(facts, pins)}")
        left = kept


def _is_legal(facts: Facts, pins: Pins) -> bool:
    return any(all(rule.holds(facts, pins, split) for rule in RULES) for split in splits(facts.devices, pins))


def _legal(facts: Facts, pins: Pins) -> str:
    """What to change."""
    instead = {
        key: [value for value in _values(key, facts) if _is_legal(facts, pins.but(key, value))]
        for key in pins.items
    }
    shown = [f"{key}={_listed(values)}" for key, values in instead.items() if values]
    needless = [key for key in pins.items if _is_legal(facts, pins.but(key, None))]
    advice = f"Legal, the other pins as they are: {'; '.join(shown)}." if shown else ""
    if needless:
        return f"{advice} Or leave out {_joined(needless)}.".strip()
    return advice or "Change more than one of these pins, or leave them out."


def _values(key: str, facts: Facts) -> Sequence[int | str]:
    if key in (*ROLES, "pp"):
        return divisors(facts.devices)
    if key == "microbatch":
        return divisors(facts.batch)
    if key == "chunks":
        return range(1, facts.calls + 1)
    choices: dict[str, Sequence[int | str]] = {"zero": ZERO_LEVELS, "schedule": SCHEDULES}
    return choices.get(key, RECOMPUTE_LEVELS)


def _listed(values: Sequence[object]) -> str:
    """``1, 2 or 4``"""
    if len(values) > MOST_SHOWN:
        return f"{', '.join(map(str, values[: MOST_SHOWN - 2]))}, …, {values[-1]}"
    return _joined(values)


def _joined(values: Sequence[object]) -> str:
    *before, last = map(str, values)
    return f"{', '.join(before)} or {last}" if before else last


def _count(number: int, what: str) -> str:
    """``1 segment``, ``2 microbatches``"""
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("ch") else "s")


def _product_problem(facts: Facts, pins: Pins) -> str:
    sizes = {**pins.sizes, **({"pp": pins.pp} if pins.pp else {})}
    named = ", ".join(f"{role}={size}" for role, size in sizes.items() if size > 1)
    taken = prod(sizes.values())
    if facts.devices % taken:
        return (
            f"the pinned axes take {taken} devices ({named}), which does not divide the cluster's "
            f"{facts.devices}."
        )
    return (
        f"the pinned axes take {taken} of {facts.devices} devices and every other role is pinned to 1: "
        f"{facts.devices // taken} devices per group would idle."
    )


def _has_stages(facts: Facts, pins: Pins, split: Split) -> bool:
    return split.pp > 1 or not pins.needs_stages


def _no_stages(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    wish = f"schedule={pins.schedule}" if pins.schedule else f"chunks={pins.chunks}"
    why = f"the other pins take all {facts.devices} devices" if facts.devices > 1 else "there is one device"
    return f"pin {wish} needs a pipeline of at least 2 ranks, but {why}."


def _least_chunks(pins: Pins) -> int:
    return pins.chunks or (2 if pins.schedule == "interleaved" else 1)


def _stages_have_segments(facts: Facts, pins: Pins, split: Split) -> bool:
    return split.pp == 1 or split.pp * _least_chunks(pins) <= facts.calls


def _too_many_stages(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    pp, chunks = min(split.pp for split in left), _least_chunks(pins)
    each = f" with {chunks} stages each" if chunks > 1 else ""
    return (
        f"{pp} pipeline ranks{each} are {pp * chunks} stages, but the model has {_count(facts.calls, 'segment')} to "
        "make them of (its repeated blocks, and what comes before and after them)."
    )


def _suits_zero(facts: Facts, pins: Pins, split: Split) -> bool:
    if pins.zero is None:
        return True
    if pins.zero == 0:
        return split.dp_shard == 1
    is_sharded = split.dp_shard * split.cp > 1
    return is_sharded and split.dp_replicate == pins.sizes.get("dp_replicate", 1)


def _no_zero(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    if pins.zero == 0:
        size = min(split.dp_shard for split in left)
        return (
            f"pins zero=0 and dp_shard={size} contradict each other: the ranks of dp_shard hold shards of the "
            f"parameters at rest (zero 1, 2 or 3), those of dp_replicate whole ones (dp_replicate={size})."
        )
    if facts.devices == 1:
        return f"pin zero={pins.zero} shards over data ranks, but there is one device."
    return (
        f"pin zero={pins.zero} shards over the ranks of dp_shard and cp, but the other pins take all "
        f"{facts.devices} devices for other ranks."
    )


def _divides_batch(facts: Facts, pins: Pins, split: Split) -> bool:
    return facts.batch % split.data_ranks == 0


def _divides_sequence(facts: Facts, pins: Pins, split: Split) -> bool:
    return all(length % split.cp == 0 for length in facts.sequences)


def _undivided_batch(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    return _undivided("batch", facts.batch, {split.data_ranks for split in left}, pins)


def _undivided_sequence(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    ranks = {split.cp for split in left}
    length = next(length for length in facts.sequences if all(length % size for size in ranks))
    return _undivided("sequence", length, ranks, pins)


def _undivided(what: str, size: int, ranks: set[int], pins: Pins) -> str:
    needed = min(ranks)
    return (
        f"the {what} of {size} does not divide over {_listed(sorted(ranks))} ranks ({pins}): it does over "
        f"{_listed(divisors(size))}. Use a {what} that is a multiple of {needed}."
    )


def _microbatch_divides(facts: Facts, pins: Pins, split: Split) -> bool:
    return facts.batch % (split.data_ranks * (pins.microbatch or 1)) == 0


def _undivided_microbatch(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    ranks = min(split.data_ranks for split in left)
    return (
        f"pin microbatch={pins.microbatch} does not divide the {facts.batch // ranks} of {facts.batch} sequences "
        f"that each of {ranks} data ranks takes."
        if ranks > 1
        else f"pin microbatch={pins.microbatch} does not divide the batch of {facts.batch}."
    )


def _counts(facts: Facts, pins: Pins, split: Split) -> list[int]:
    """Numbers of microbatches of a data rank."""
    sequences = facts.batch // split.data_ranks
    return [sequences // pins.microbatch] if pins.microbatch else divisors(sequences)


def _has_schedule(facts: Facts, pins: Pins, split: Split) -> bool:
    if split.pp == 1:
        return True
    return any(
        pins.chunks in (None, chunks)
        for count in _counts(facts, pins, split)
        for _, chunks in schedules(pins, split.pp, count, facts.calls)
    )


def _no_schedule(facts: Facts, pins: Pins, left: Sequence[Split]) -> str:
    split = min(left, key=lambda split: (split.pp, split.data_ranks))
    count = max(_counts(facts, pins, split))
    schedule = pins.schedule or "interleaved"
    takes = {
        "gpipe": "one stage a rank",
        "1f1b": "one stage a rank, and at least as many microbatches as ranks",
    }.get(schedule, "a multiple of (microbatches // ranks) microbatches")
    return (
        f"the schedule {schedule} takes {takes}, but {split.pp} pipeline ranks have "
        f"{'at most ' if not pins.microbatch else ''}{_count(count, 'microbatch')} of a data rank's "
        f"{facts.batch // split.data_ranks} sequences ({pins})."
    )


RULES = (
    Rule(_has_stages, _no_stages),
    Rule(_stages_have_segments, _too_many_stages),
    Rule(_suits_zero, _no_zero),
    Rule(_divides_batch, _undivided_batch),
    Rule(_divides_sequence, _undivided_sequence),
    Rule(_microbatch_divides, _undivided_microbatch),
    Rule(_has_schedule, _no_schedule),
)
