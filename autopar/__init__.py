"""The auto-parallelization compiler for PyTorch: a plain module and a cluster in, a sharded program out.

Nothing is imported before it is used: a training process needs only torch and ``autopar.runtime``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopar._version import __version__

if TYPE_CHECKING:
    from autopar.parallel import Parallel, parallelize
    from autopar.plan.files import read_plan, write_plan
    from autopar.plan.schema import Plan

__all__ = ["Parallel", "Plan", "__version__", "parallelize", "read_plan", "write_plan"]

_HOMES = {
    "Parallel": "autopar.parallel",
    "Plan": "autopar.plan.schema",
    "parallelize": "autopar.parallel",
    "read_plan": "autopar.plan.files",
    "write_plan": "autopar.plan.files",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'autopar' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
