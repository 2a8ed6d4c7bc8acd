"""Inter- against intra-operator parallelism: what the devices of several plans send, wait for and hold in a step.

Inter-operator parallelism puts operators on different devices, which then wait for each other; intra-operator
parallelism cuts every operator, and then communicates about each. All seconds are those of the played schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from rich import box
from rich.table import Table

from autopar.plan.schema import Plan
from autopar.report.anatomy import Anatomy, anatomy
from autopar.report.device_traffic import SEND, Sent, sent_by_device
from autopar.report.stages_text import mesh_text
from autopar.report.step_blocks import planned_step
from autopar.report.units import plain, show_bytes, show_seconds, show_share
from cost_models.simulator import simulate
from cost_models.simulator_blocks import step_actions
from cost_models.timeline import Timeline

__all__ = [
    "COLUMNS",
    "LITTLE",
    "DeviceStep",
    "device_step",
    "inter_and_intra_markdown",
    "inter_and_intra_table",
    "played_blocks",
]

COLUMNS = (
    *("parallelism", "plan", "step", "operators", "exposed communication", "idle"),
    *("sent from stage to stage", "in collectives", "by axis", "memory"),
)

LITTLE = 0.01
"""Of all that goes through collectives: an axis with less is not named."""


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One step of a plan as its devices see it, on average over them unless said otherwise."""

    name: str
    mesh: str
    step_s: float
    exposed_s: float
    """Communicating, with no operator beside it."""
    idle_s: float
    """Doing nothing at all: the pipeline's bubble."""
    sent: tuple[Sent, ...]
    peak_bytes: int
    """Of the fullest device, as the plan says."""

    @property
    def operators_s(self) -> float:
        """Running operators."""
        return self.step_s - self.exposed_s - self.idle_s

    @property
    def stage_bytes(self) -> float:
        """Sent from stage to stage, point to point."""
        return sum(each.size_bytes for each in self.sent if each.kind == SEND)

    @property
    def collective_bytes(self) -> float:
        return sum(each.size_bytes for each in self.sent if each.kind != SEND)


def device_step(name: str, plan: Plan) -> DeviceStep:
    """Plays a plan; ``name`` says what is compared. Raises ``PlanError`` if the plan is broken."""
    opened = anatomy(plan)
    timeline = played_blocks(opened)
    ranks = range(len(timeline.ranks))
    return DeviceStep(
        name,
        mesh_text(plan),
        timeline.step_s,
        mean(timeline.exposed_communication_s(rank) for rank in ranks),
        mean(timeline.bubble_s(rank) for rank in ranks),
        sent_by_device(opened),
        opened.plan.predicted.peak_memory_bytes,
    )


def played_blocks(opened: Anatomy) -> Timeline:
    """The step by pipeline rank; the operators of a block are one event, and so are the collectives it waits for."""
    planned = planned_step(opened, most_parts=0)
    slowdown = opened.prices.cluster.device.overlap_slowdown
    return simulate(
        step_actions(planned.step), overlap_slowdown=slowdown, resting_bytes=planned.resting_bytes
    )


def inter_and_intra_table(plans: Mapping[str, Plan]) -> Table:
    """The plans side by side, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("parallelism", "plan", "by axis") else "right")
    for name, plan in plans.items():
        table.add_row(*map(plain, _cells(device_step(name, plan))))
    return table


def inter_and_intra_markdown(steps: Sequence[DeviceStep]) -> str:
    """The same as Markdown."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(_cells, steps)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(step: DeviceStep) -> tuple[str, ...]:
    return (
        step.name,
        step.mesh,
        show_seconds(step.step_s),
        *(_with_share(part_s, step.step_s) for part_s in (step.operators_s, step.exposed_s, step.idle_s)),
        show_bytes(step.stage_bytes),
        show_bytes(step.collective_bytes),
        ", ".join(_by_axis(step)) or "–",
        show_bytes(step.peak_bytes),
    )


def _with_share(part_s: float, step_s: float) -> str:
    return f"{show_seconds(part_s)} ({show_share(part_s / step_s)})" if step_s else "0"


def _by_axis(step: DeviceStep) -> Iterator[str]:
    """``tp 12.0 GB``: collectives by axis, the largest first; little ones are left out."""
    totals: Counter[str] = Counter()
    for each in step.sent:
        if each.kind != SEND:
            totals[each.axis] += each.size_bytes  # type: ignore[assignment]
    for axis, size_bytes in totals.most_common():
        if size_bytes >= LITTLE * step.collective_bytes:
            yield f"{axis} {show_bytes(size_bytes)}"
