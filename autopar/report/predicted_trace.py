"""The predicted step of a plan on a timeline, and why it is not exactly as long as the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from autopar.errors import PlanError
from autopar.report.anatomy import Anatomy
from autopar.report.step_blocks import planned_step
from autopar.report.trace import TraceEvent, trace_events
from cost_models.simulator import simulate
from cost_models.simulator_blocks import block_actions
from cost_models.timeline import Action, Timeline

__all__ = ["PredictedTrace", "predicted_trace"]


@dataclass(frozen=True, slots=True)
class PredictedTrace:
    """One step as predicted."""

    timeline: Timeline
    """Of one rank, that stands for all which do the same."""
    events: list[TraceEvent]
    plan_step_s: float
    """What the plan says."""
    differences_s: dict[str, float]
    """What the timeline adds to it, by cause."""

    def facts(self) -> dict[str, object]:
        """The trace's figures in short."""
        return {
            "step_s": self.timeline.step_s,
            "plan_step_s": self.plan_step_s,
            "differences_s": self.differences_s,
            "exposed_communication_s": self.timeline.exposed_communication_s(0),
            "bubble_fraction": self.timeline.bubble_fraction,
            "peak_bytes": self.timeline.peak_bytes(0),
        }


def predicted_trace(opened: Anatomy, ranks: int = 1) -> PredictedTrace:
    """The step of a plan on ``ranks`` equal ranks. Raises ``PlanError`` where the plan has fewer."""
    count = prod(opened.prices.sizes)
    if not 1 <= ranks <= count:
        raise PlanError(f"the plan has {count} ranks: {ranks} of them cannot be shown.")
    planned = planned_step(opened)
    actions, device = block_actions(planned.step), opened.prices.cluster.device
    timeline = _played(actions, device.overlap_slowdown, planned.resting_bytes)
    alone = _played(actions, 1.0, planned.resting_bytes)
    copies = Timeline(timeline.ranks * ranks, timeline.memory * ranks)
    return PredictedTrace(
        timeline,
        trace_events(copies, _titles(ranks, count), planned.details),
        opened.plan.predicted.step_time_s,
        _differences_s(opened, timeline, alone),
    )


def _played(actions: Sequence[Action], slowdown: float, resting_bytes: int) -> Timeline:
    return simulate([actions], overlap_slowdown=slowdown, resting_bytes=[resting_bytes])


def _titles(ranks: int, count: int) -> list[str]:
    if ranks == 1 < count:
        return [f"predicted: rank 0 (and {count - 1} like it)"]
    return [f"predicted: rank {rank}" for rank in range(ranks)]


def _differences_s(opened: Anatomy, timeline: Timeline, alone: Timeline) -> dict[str, float]:
    """``alone`` is the timeline without slowdown."""
    predicted = opened.plan.predicted
    exposed_s = alone.exposed_communication_s(0) - predicted.exposed_communication_s
    slowed_s = timeline.step_s - alone.step_s
    return {
        "communication that no operator hides": exposed_s,
        "compute and collectives slow each other down": slowed_s,
        "other": timeline.step_s - predicted.step_time_s - exposed_s - slowed_s,
    }
