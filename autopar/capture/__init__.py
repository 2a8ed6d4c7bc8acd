"""What a module computes, as a graph without torch objects.

Nothing is imported before it is used: who only reads a graph needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.capture.fingerprint import fingerprint
    from autopar.capture.interpret import interpret
    from autopar.capture.passes import capture

__all__ = ["capture", "fingerprint", "interpret"]

_HOMES = {
    "capture": "autopar.capture.passes",
    "fingerprint": "autopar.capture.fingerprint",
    "interpret": "autopar.capture.interpret",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'autopar.capture' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
