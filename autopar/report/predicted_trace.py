"""The predicted step of a plan on a timeline, and why it is not exactly as long as the plan says."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from autopar.errors import PlanError
from autopar.planner.step import step_s
from autopar.report.anatomy import Anatomy
from autopar.report.step_blocks import planned_step
from autopar.report.trace import TraceEvent, trace_events
from cost_models.simulator import simulate
from cost_models.simulator_blocks import step_actions
from cost_models.timeline import Timeline

__all__ = ["HOST", "PredictedTrace", "predicted_trace"]

HOST = "devices that wait for the host, which the trace leaves out"


@dataclass(frozen=True, slots=True)
class PredictedTrace:
    """One step as predicted."""

    timeline: Timeline
    """By pipeline rank; one rank of its submesh stands for all."""
    events: list[TraceEvent]
    plan_step_s: float
    """What the plan says."""
    differences_s: dict[str, float]
    """What the timeline adds to it, by cause."""

    def facts(self) -> dict[str, object]:
        """The trace's figures in short, lists by pipeline rank."""
        ranks = range(len(self.timeline.ranks))
        return {
            "step_s": self.timeline.step_s,
            "plan_step_s": self.plan_step_s,
            "differences_s": self.differences_s,
            "bubble_fraction": self.timeline.bubble_fraction,
            "exposed_communication_s": [self.timeline.exposed_communication_s(rank) for rank in ranks],
            "peak_bytes": [self.timeline.peak_bytes(rank) for rank in ranks],
        }


def predicted_trace(opened: Anatomy, ranks: int = 1) -> PredictedTrace:
    """The step of a plan: ``ranks`` equal ranks of every pipeline stage.

    Raises ``PlanError`` where the plan has fewer.
    """
    alike = prod(opened.prices.sizes)
    if not 1 <= ranks <= alike:
        raise PlanError(f"the plan has {alike} ranks that do the same: {ranks} of them cannot be shown.")
    planned, device = planned_step(opened), opened.prices.cluster.device
    actions = step_actions(planned.step)
    timeline = simulate(
        actions, overlap_slowdown=device.overlap_slowdown, resting_bytes=planned.resting_bytes
    )
    numbers = [[stage * alike + copy for stage in range(len(actions))] for copy in range(ranks)]
    events = [
        trace_events(timeline, {n: _title(n, alike, shown=ranks) for n in numbers[copy]}, planned.details)
        for copy in range(ranks)
    ]
    return PredictedTrace(
        timeline,
        sorted((event for each in events for event in each), key=lambda event: event["ts"]),  # type: ignore[arg-type, return-value]
        opened.plan.predicted.step_time_s,
        _differences_s(opened, timeline, simulate(actions)),
    )


def _title(rank: int, alike: int, shown: int) -> str:
    others = f" (and {alike - 1} like it)" if shown == 1 < alike else ""
    return f"predicted: rank {rank}{others}"


def _differences_s(opened: Anatomy, timeline: Timeline, alone: Timeline) -> dict[str, float]:
    """``alone`` is the timeline without slowdown."""
    predicted = opened.plan.predicted
    slowed_s = timeline.step_s - alone.step_s
    found = {"compute and collectives slow each other down": slowed_s}
    waits_s = 0.0
    if len(timeline.ranks) == 1:
        waits_s = step_s(opened.realized, opened.prices) - predicted.step_time_s
        found[HOST] = waits_s
    if len(timeline.ranks) > 1:
        found["the schedule as it is played, not as its closed form"] = alone.step_s - predicted.step_time_s
        return found
    exposed_s = alone.exposed_communication_s(0) - predicted.exposed_communication_s
    found["communication that no operator hides"] = exposed_s
    found["other"] = timeline.step_s - predicted.step_time_s - exposed_s - slowed_s - waits_s
    return found
