"""What the user fixed beforehand: ``tp=2,dp_shard=4,zero=3``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autopar.errors import PinError
from autopar.planner.execution import RECOMPUTE_LEVELS
from cost_models.schedules import SCHEDULES

__all__ = ["ROLES", "ZERO_LEVELS", "Pins", "parse_pins"]

ROLES = ("dp_replicate", "dp_shard", "cp", "tp")
ZERO_LEVELS = (0, 1, 2, 3)
_LATER = {"ep": "expert parallelism"}
_OTHERS = ("pp", "zero", "recompute", "microbatch", "schedule", "chunks")
_KEYS = (*ROLES, "pp", "zero", "recompute", "microbatch", "schedule", "chunks")


@dataclass(frozen=True, slots=True)
class Pins:
    """Choices taken out of the search."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size of the axis of each pinned role."""
    zero: int | None = None
    """0: parameters replicated over data axes at rest; 1, 2, 3: sharded, gathered ever more often."""
    recompute: str | None = None
    """``none``, ``selective`` or ``full``."""
    microbatch: int | None = None
    """Sequences that one data rank takes at a time."""
    pp: int | None = None
    """Ranks of the pipeline."""
    schedule: str | None = None
    """``gpipe``, ``1f1b``, ``interleaved`` or ``zero-bubble``."""
    chunks: int | None = None
    """Stages of one pipeline rank."""

    @property
    def needs_stages(self) -> bool:
        """True when only a pipeline can do what is pinned."""
        return (self.pp or 1) > 1 or self.schedule is not None or (self.chunks or 1) > 1

    @property
    def items(self) -> dict[str, int | str]:
        """Everything that is pinned, by key."""
        others = {key: getattr(self, key) for key in _OTHERS}
        return {**self.sizes, **{key: value for key, value in others.items() if value is not None}}

    def but(self, key: str, value: int | str | None) -> Pins:
        """The same with another value of one pin; without it where the value is None."""
        if key in ROLES:
            sizes = {role: size for role, size in self.sizes.items() if role != key}
            return replace(self, sizes=sizes if value is None else {**sizes, key: int(value)})
        return replace(self, **{key: value})  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.items.items())


def parse_pins(text: str) -> Pins:
    """``tp=2,dp_shard=4`` as pins. Raises ``PinError`` naming the key, the value and what is legal."""
    sizes: dict[str, int] = {}
    others: dict[str, int | str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = (part.strip() for part in item.partition("="))
        if not separator:
            raise PinError(f"pin '{item}' has no value: write key=value, such as tp=2")
        if key in sizes or key in others:
            raise PinError(f"pin {key} is given twice in '{text}': keep one of them")
        if key in ROLES:
            sizes[key] = _positive(key, value)
        elif key in _OTHERS:
            others[key] = _other(key, value)
        else:
            _check_other(key, value)
    _check_stages(others)
    return Pins(sizes, **others)  # type: ignore[arg-type]


def _other(key: str, value: str) -> int | str:
    if key == "zero":
        return _zero(value)
    if key == "recompute":
        return _one_of(key, value, RECOMPUTE_LEVELS)
    return _one_of(key, value, SCHEDULES) if key == "schedule" else _positive(key, value)


def _check_stages(others: Mapping[str, int | str]) -> None:
    """A schedule needs stages, several chunks a schedule that takes them."""
    for key in ("schedule", "chunks"):
        if others.get("pp") == 1 and others.get(key, 1) != 1:
            raise PinError(
                f"pin {key}={others[key]} needs a pipeline, and pp=1 rules it out: "
                "pin pp=2 or more, or leave one of the two out."
            )
    if others.get("schedule") in ("gpipe", "1f1b") and others.get("chunks", 1) != 1:
        raise PinError(
            f"pin chunks={others['chunks']}: the schedule {others['schedule']} takes one chunk a rank. "
            "Pin schedule=interleaved or zero-bubble."
        )


def _positive(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        what = {"microbatch": "a microbatch", "chunks": "a rank's share in stages"}.get(key, "an axis")
        raise PinError(f"pin {key}={value}: the size of {what} is a whole number of at least 1")
    return int(value)


def _zero(value: str) -> int:
    if value not in map(str, ZERO_LEVELS):
        raise PinError(
            f"pin zero={value}: legal are 0 (replicated), 1 (optimizer state sharded), 2 (gradients too) and "
            "3 (parameters too)"
        )
    return int(value)


def _one_of(key: str, value: str, legal: tuple[str, ...]) -> str:
    if value not in legal:
        raise PinError(f"pin {key}={value}: legal are {', '.join(legal)}")
    return value


def _check_other(key: str, value: str) -> None:
    """Keys that this version knows but cannot vary yet, and keys that nobody knows."""
    if key in _LATER:
        if value != "1":
            raise PinError(f"pin {key}={value}: {_LATER[key]} are not supported yet; leave it out")
    else:
        close = difflib.get_close_matches(key.lower(), _KEYS, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise PinError(f"pin '{key}' is unknown: known are {', '.join(_KEYS)}.{hint}")
