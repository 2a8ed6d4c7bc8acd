"""What a CPU pays for a large new tensor: malloc maps it anew each time, and the system hands out page by page."""

from __future__ import annotations

import statistics
import time

import torch

from autopar.measure.readings import OperatorReading
from cost_models.operators import FRESH_FROM_BYTES, Work

__all__ = ["FRESH_PAGES", "fresh_page_readings"]

FRESH_PAGES = "fresh pages"
"""Start of the names of the readings."""
TIMES = (2, 4)
"""Sizes, in those from which on a tensor's pages are new."""
SAMPLES = 9


def fresh_page_readings() -> list[OperatorReading]:
    """What writing a large new tensor takes, less what writing it again takes."""
    found = []
    for times in TIMES:
        elements = times * FRESH_FROM_BYTES // 4
        samples = [_new_less_old_s(elements) for _ in range(SAMPLES)]
        low, middle, high = statistics.quantiles(samples, n=4)
        work = Work("free", 0.0, 0.0, 4.0 * elements, "float32")
        found.append(
            OperatorReading(f"{FRESH_PAGES} {4 * elements >> 20} MiB", work, middle, high - low, SAMPLES)
        )
    return found


def _new_less_old_s(elements: int) -> float:
    seconds = []
    tensor = torch.empty(elements)
    for _ in range(2):
        started_s = time.perf_counter()
        tensor.zero_()
        seconds.append(time.perf_counter() - started_s)
    return max(seconds[0] - seconds[1], 0.0)
