"""What a kilobyte is: decimal for bandwidths and datasheets, binary for allocators."""

from __future__ import annotations

__all__ = ["GB", "MB", "GiB", "MiB"]

MB = 10**6
GB = 10**9
MiB = 2**20
GiB = 2**30
