"""What a module computes, as a graph without torch objects."""

from autopar.capture.fingerprint import fingerprint
from autopar.capture.interpret import interpret
from autopar.capture.passes import capture

__all__ = ["capture", "fingerprint", "interpret"]
