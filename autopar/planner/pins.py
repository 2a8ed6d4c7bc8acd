"""What the user fixed beforehand: ``tp=2,dp_shard=4,zero=3``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.errors import PinError
from autopar.planner.execution import RECOMPUTE_LEVELS

__all__ = ["Pins", "parse_pins"]

ROLES = ("dp_replicate", "dp_shard", "cp", "tp")
ZERO_LEVELS = (0, 1, 2, 3)
_LATER = {
    "pp": "pipeline stages",
    "ep": "expert parallelism",
    "schedule": "pipeline schedules",
    "chunks": "schedules",
}
_KEYS = (*ROLES, "zero", "recompute", "microbatch")


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

    @property
    def leaves_free_axes(self) -> bool:
        """True when some role is not pinned, so that the search may add an axis for it."""
        return any(role not in self.sizes for role in ROLES)

    def __str__(self) -> str:
        items = [f"{role}={size}" for role, size in self.sizes.items()]
        others = {"zero": self.zero, "recompute": self.recompute, "microbatch": self.microbatch}
        return ",".join([*items, *(f"{key}={value}" for key, value in others.items() if value is not None)])


def parse_pins(text: str) -> Pins:
    """``tp=2,dp_shard=4`` as pins. Raises ``PinError`` naming the key, the value and what is legal."""
    sizes: dict[str, int] = {}
    zero, recompute, microbatch = None, None, None
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = item.partition("=")
        if not separator:
            raise PinError(f"pin '{item}' has no value: write key=value, such as tp=2")
        if key in ROLES:
            sizes[key] = _positive(key, value)
        elif key == "zero":
            zero = _zero(value)
        elif key == "recompute":
            recompute = _recompute(value)
        elif key == "microbatch":
            microbatch = _positive(key, value)
        else:
            _check_other(key, value)
    return Pins(sizes, zero, recompute, microbatch)


def _positive(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        what = "a microbatch" if key == "microbatch" else "an axis"
        raise PinError(f"pin {key}={value}: the size of {what} is a whole number of at least 1")
    return int(value)


def _zero(value: str) -> int:
    if value not in map(str, ZERO_LEVELS):
        raise PinError(
            f"pin zero={value}: legal are 0 (replicated), 1 (optimizer state sharded), 2 (gradients too) and "
            "3 (parameters too)"
        )
    return int(value)


def _recompute(value: str) -> str:
    if value not in RECOMPUTE_LEVELS:
        raise PinError(f"pin recompute={value}: legal are {', '.join(RECOMPUTE_LEVELS)}")
    return value


def _check_other(key: str, value: str) -> None:
    """Keys that this version knows but cannot vary yet, and keys that nobody knows."""
    if key in _LATER:
        if value != "1":
            raise PinError(f"pin {key}={value}: {_LATER[key]} are not supported yet; leave it out")
    else:
        close = difflib.get_close_matches(key, _KEYS, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise PinError(f"pin '{key}' is unknown: known are {', '.join(_KEYS)}.{hint}")
