"""In-place operators become operators that return new tensors."""

from autopar.capture.trace import Trace


def make_functional(trace: Trace) -> None:
    pass
