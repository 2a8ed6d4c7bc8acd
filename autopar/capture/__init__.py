"""What a module computes, as a graph without torch objects."""

from autopar.capture.capture import capture
from autopar.capture.interpret import interpret

__all__ = ["capture", "interpret"]
