"""Pins that cannot be met are refused before any search, with every value that would be legal instead."""

from __future__ import annotations

import itertools

import pytest

from autopar.errors import PinError
from autopar.planner.contradictions import Facts, check_pins
from autopar.planner.pins import parse_pins
from autopar.planner.splits import divisors, splits

FOUR = Facts(devices=4, batch=8, sequences=(16,), calls=4)
EIGHT = Facts(devices=8, batch=8, sequences=(16,), calls=6)

REFUSED: dict[str, tuple[Facts, str, tuple[str, ...]]] = {
    "more ranks than devices": (
        FOUR,
        "pp=2,dp_replicate=2,tp=2",
        ("take 8 devices", "the cluster's 4", "dp_replicate=1; tp=1; pp=1"),
    ),
    "idle devices": (
        FOUR,
        "dp_replicate=2,dp_shard=1,cp=1,tp=1,pp=1",
        ("2 of 4 devices", "would idle", "tp=2"),
    ),
    "zero without data ranks": (
        FOUR,
        "pp=2,tp=2,zero=3",
        ("zero=3 shards over the ranks of dp_shard and cp", "zero=0", "pp=1"),
    ),
    "zero with replicas alone": (
        FOUR,
        "pp=2,dp_replicate=2,zero=3",
        ("zero=3 shards", "dp_replicate=1"),
    ),
    "zero on one device": (Facts(1, 8, (16,), 4), "zero=2", ("there is one device", "zero=0")),
    "shards that are whole": (
        FOUR,
        "dp_shard=2,zero=0",
        ("zero=0 and dp_shard=2 contradict", "dp_replicate=2", "zero=1, 2 or 3"),
    ),
    "a microbatch that does not divide": (
        FOUR,
        "pp=2,microbatch=3",
        ("microbatch=3 does not divide the batch of 8", "microbatch=1, 2, 4 or 8"),
    ),
    "a microbatch of more than a rank has": (
        EIGHT,
        "pp=2,dp_shard=4,microbatch=4",
        ("the 2 of 8 sequences", "4 data ranks", "dp_shard=1 or 2", "microbatch=1 or 2"),
    ),
    "more ranks than segments": (
        EIGHT,
        "pp=8",
        ("8 pipeline ranks are 8 stages", "6 segments", "pp=1, 2 or 4"),
    ),
    "more chunks than segments": (
        FOUR,
        "pp=2,chunks=4",
        ("2 pipeline ranks with 4 stages each are 8", "chunks=1 or 2"),
    ),
    "interleaving too few segments": (
        FOUR,
        "pp=4,schedule=interleaved",
        ("4 pipeline ranks with 2 stages each", "pp=2", "schedule=gpipe, 1f1b or zero-bubble"),
    ),
    "a schedule with too few microbatches": (
        EIGHT,
        "pp=4,dp_shard=2,schedule=1f1b,microbatch=2",
        ("1f1b takes one stage a rank, and at least as many microbatches", "4 pipeline ranks have 2", "microbatch=1"),
    ),
    "a schedule of another number of microbatches": (
        Facts(3, 10, (16,), 6),
        "pp=3,schedule=interleaved,chunks=2,microbatch=1",
        ("a multiple of (microbatches // ranks)", "3 pipeline ranks have 10", "microbatch=2, 5 or 10"),
    ),
    "a schedule without ranks left": (
        FOUR,
        "tp=4,schedule=gpipe",
        ("schedule=gpipe needs a pipeline", "take all 4 devices", "tp=1 or 2"),
    ),
    "chunks on one device": (Facts(1, 8, (16,), 4), "chunks=2", ("chunks=2 needs a pipeline", "one device")),
    "a batch that does not divide": (
        Facts(6, 8, (16,), 4),
        "dp_shard=3",
        ("batch of 8 does not divide over 3 or 6 ranks", "1, 2, 4 or 8", "dp_shard=1 or 2"),
    ),
    "a sequence that does not divide": (
        Facts(32, 8, (16, 24), 4),
        "cp=16",
        ("sequence of 24 does not divide over 16 ranks", "cp=1, 2, 4 or 8"),
    ),
    "two pins at once": (
        FOUR,
        "pp=3,dp_shard=3",
        ("take 9 devices", "Change more than one of these pins"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "pins", "words"), REFUSED.values(), ids=list(REFUSED))
def test_a_contradiction_is_named_with_its_numbers(facts: Facts, pins: str, words: tuple[str, ...]) -> None:
    with pytest.raises(PinError) as refusal:
        check_pins(facts, parse_pins(pins))
    for word in words:
        assert word in str(refusal.value)


ALLOWED = (
    "",
    "zero=0",
    "zero=3",
    "dp_replicate=2,zero=3",
    "tp=2,zero=3",
    "cp=4,zero=1",
    "dp_shard=1,cp=2,zero=2",
    "pp=2,dp_shard=2,zero=3,microbatch=2",
    "pp=4,schedule=interleaved,chunks=1",
    "schedule=1f1b",
    "chunks=2",
    "chunks=1,pp=1",
    "pp=2,microbatch=8",
)


@pytest.mark.parametrize("pins", ALLOWED)
def test_pins_that_can_be_met_pass(pins: str) -> None:
    check_pins(FOUR, parse_pins(pins))


def _is_refused(facts: Facts, pins: str) -> str:
    try:
        check_pins(facts, parse_pins(pins))
    except PinError as error:
        return str(error)
    return ""


def test_every_value_that_is_called_legal_is() -> None:
    """All pairs of pins: what the message offers is accepted, nothing else of its kind is."""
    values = {
        "pp": (2, 3, 8),
        "tp": (1, 2, 8),
        "dp_shard": (1, 4, 8),
        "dp_replicate": (2, 8),
        "microbatch": (1, 3, 8),
        "zero": (0, 3),
        "schedule": ("1f1b", "interleaved"),
    }
    refused = 0
    for (a, a_values), (b, b_values) in itertools.combinations(values.items(), 2):
        for a_value, b_value in itertools.product(a_values, b_values):
            message = _is_refused(EIGHT, f"{a}={a_value},{b}={b_value}")
            if "Legal, the other pins as they are: " not in message:
                continue
            refused += 1
            offer = message.split("Legal, the other pins as they are: ")[1].split(".")[0]
            for item in offer.split("; "):
                key, _, listed = item.partition("=")
                other = f"{b}={b_value}" if key == a else f"{a}={a_value}"
                legal = listed.replace(" or ", ", ").split(", ")
                for value in values[key]:
                    assert bool(_is_refused(EIGHT, f"{key}={value},{other}")) != (str(value) in legal), (
                        message
                    )
    assert refused > 30


def test_splits_multiply_to_the_devices_and_are_all_there() -> None:
    for devices in (1, 6, 16):
        found = [(s.pp, s.dp_replicate, s.dp_shard, s.cp, s.tp) for s in splits(devices, parse_pins(""))]
        every = itertools.product(divisors(devices), repeat=5)
        wanted = [sizes for sizes in every if sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4] == devices]
        assert sorted(found) == sorted(wanted)


def test_divisors_are_those_that_divide() -> None:
    for number in range(1, 200):
        assert divisors(number) == [size for size in range(1, number + 1) if number % size == 0]
