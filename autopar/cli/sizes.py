"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from autopar.errors import ClusterError

__all__ = ["parse_bytes"]

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """``80GB``, ``512MiB`` or a number of bytes. Raises ``ClusterError`` for anything else, zero included."""
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ClusterError(
            f"--memory '{text}' is not a size: write a number with one of {', '.join(filter(None, _UNITS))}"
        )
    size_bytes = round(float(match[1]) * units[match[2].lower()])
    if size_bytes < 1:
        raise ClusterError(
            f"--memory '{text}' leaves a device no memory: write a size above zero, such as 80GB"
        )
    return size_bytes
