"""What is compared: for one model and batch, plans (chosen, and pinned) and ways to train by hand."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INDEX", "Contest", "Hand", "contest_of", "read_contests"]

INDEX = "index.json"
"""Of a folder of plans: the contests with all that running and reporting need."""

CHOSEN = ""
"""The pins of the plan that is chosen without hints."""

ONE_DEVICE = (
    (CHOSEN, "recompute=none", "recompute=selective", "recompute=full"),
    ("single", "single recompute"),
)
SEVERAL_DEVICES = (
    (
        CHOSEN,
        "dp_replicate={n}",
        "dp_shard={n},zero=1",
        "dp_shard={n},zero=2",
        "dp_shard={n},zero=3",
        "dp_shard={n},zero=3,recompute=full",
        "tp={n}",
        "tp={n},recompute=full",
        "pp={n},schedule=1f1b",
        "pp={n},schedule=interleaved",
    ),
    (
        "ddp",
        "ddp recompute",
        "fsdp2",
        "fsdp2 recompute",
        "fsdp2-reshard",
        "fsdp2-reshard recompute",
        "tensor-parallel",
        "tensor-parallel recompute",
    ),
)
TWO_AXES = ("dp_shard={h},tp=2", "dp_replicate={h},tp=2", "pp=2,dp_shard={h}", "pp=2,tp={h}")
"""On four devices and more; ``h`` is half of them."""


@dataclass(frozen=True, slots=True)
class Contest:
    """One model and batch, and who competes."""

    name: str
    model: str
    """As ``autopar plan`` takes it: ``llama:layers=22,…``."""
    global_batch: int
    seq_len: int
    pins: tuple[str, ...]
    """Of each plan; the empty one is the plan that is chosen without hints."""
    by_hand: tuple[str, ...]
    """``fsdp2 recompute microbatches=2``: see ``Hand``."""
    loss_steps: int = 0
    """Steps on real text of which the losses are compared; none where 0."""


@dataclass(frozen=True, slots=True)
class Hand:
    """A way to train by hand."""

    way: str
    """``single``, ``single-autocast``, ``ddp``, ``fsdp2``, ``fsdp2-reshard`` or ``tensor-parallel``."""
    recomputes: bool = False
    microbatches: int = 1
    is_compiled: bool = True

    @classmethod
    def parse(cls, text: str) -> Hand:
        """``fsdp2 recompute microbatches=2 eager``. Raises ValueError."""
        way, *options = text.split()
        counts = [option.removeprefix("microbatches=") for option in options if "=" in option]
        unknown = {option for option in options if "=" not in option} - {"recompute", "eager"}
        if unknown:
            raise ValueError(f"by hand '{text}': {', '.join(sorted(unknown))} is unknown")
        return cls(way, "recompute" in options, int(counts[0]) if counts else 1, "eager" not in options)


def contest_of(model: str, devices: int, global_batch: int, seq_len: int) -> Contest:
    """Everything that competes on so many devices."""
    pins, by_hand = ONE_DEVICE if devices == 1 else SEVERAL_DEVICES
    if devices >= 4:
        pins = (*pins, *TWO_AXES)
    filled = tuple(pin.format(n=devices, h=devices // 2) for pin in pins)
    return Contest(f"{model} {global_batch}×{seq_len}", model, global_batch, seq_len, filled, by_hand)


def read_contests(path: Path) -> list[Contest]:
    """The contests of a TOML file: a list ``contest`` of tables with the fields of ``Contest``."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["contest"]
    return [
        Contest(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})
        for table in tables
    ]
