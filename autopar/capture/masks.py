"""Attention masks that no data enters: dropped, or told to the kernel as ``is_causal``."""

from autopar.capture.trace import Trace


def drop_constant_masks(trace: Trace) -> tuple[str, ...]:
    return ()
