"""Every error that autopar raises for its users.

AutoparError                    exit code 2 in the CLI
├── ModelError                  the model or its inputs cannot be read, built or captured
│   └── CaptureError            torch.export could not turn the module into a graph
├── ClusterError                the cluster description is unknown or malformed
├── PinError                    a pinned choice is unknown, or impossible for this model and cluster
├── InfeasiblePlanError         nothing fits: memory, or no axis divides the batch
├── PlanError                   a saved plan is malformed or inconsistent
│   └── PlanMismatchError       a sound plan for another model, world size or set of inputs
├── TraceError                  a measured trace cannot be read, or a trace cannot be written
└── LaunchError                 a training process could not be started, or failed
"""

from __future__ import annotations

__all__ = [
    "AutoparError",
    "CaptureError",
    "ClusterError",
    "InfeasiblePlanError",
    "LaunchError",
    "ModelError",
    "PinError",
    "PlanError",
    "PlanMismatchError",
    "TraceError",
]


class AutoparError(Exception):
    """Base of all errors meant for users: names the thing, the numbers and the next step."""


class ModelError(AutoparError):
    """The model or its inputs cannot be read, built or captured."""


class CaptureError(ModelError):
    """``torch.export`` could not turn the module into a graph."""


class ClusterError(AutoparError):
    """The cluster description is unknown or malformed."""


class PinError(AutoparError):
    """A pinned choice is unknown, or impossible for this model and cluster."""


class InfeasiblePlanError(AutoparError):
    """No plan satisfies the limits."""


class PlanError(AutoparError):
    """A saved plan is malformed or inconsistent."""


class PlanMismatchError(PlanError):
    """A sound plan that belongs to another model, world size or set of inputs."""


class TraceError(AutoparError):
    """A measured trace cannot be read, or a trace cannot be written."""


class LaunchError(AutoparError):
    """A training process could not be started, or failed."""
