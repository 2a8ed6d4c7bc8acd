"""Actions as the simulator plays them: sends joined with receives, needs as links, streams as lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from cost_models.timeline import COMPUTE, DATA, Action

__all__ = ["Lane", "Overlap", "ScheduleError", "Task", "lanes_of", "tasks_of", "waiting_in_a_circle"]

SHOWN = 4
"""Streams that an error about a circle of waiting describes."""


class ScheduleError(ValueError):
    """Actions that cannot be played: names that do not fit together, or a circle of waiting."""


@dataclass(slots=True, eq=False)
class Lane:
    """One stream of one rank."""

    tasks: list[Task] = field(default_factory=list)
    done: int = 0
    """Tasks that have ended."""

    @property
    def head(self) -> Task | None:
        """What runs, or is next."""
        return self.tasks[self.done] if self.done < len(self.tasks) else None


@dataclass(slots=True, eq=False)
class Task:
    """One action, or a send and its receive, which run as one."""

    seconds: float
    actions: tuple[tuple[int, Action], ...]
    """(rank, action)"""
    lanes: list[Lane] = field(default_factory=list)
    missing: int = 0
    """Needs that have not ended."""
    readers: list[Task] = field(default_factory=list)
    start_s: float = -1.0
    end_s: float = -1.0
    remaining_s: float = 0.0
    """At full speed, as of ``since_s``."""
    since_s: float = 0.0
    speed: float = 1.0
    version: int = 0
    """Of its entry in the calendar: older ones are void."""

    @property
    def name(self) -> str:
        return " with ".join(action.name for _, action in self.actions)

    @property
    def is_running(self) -> bool:
        return self.start_s >= 0.0 > self.end_s

    @property
    def can_start(self) -> bool:
        return self.start_s < 0.0 and not self.missing and all(lane.head is self for lane in self.lanes)


@dataclass(slots=True, eq=False)
class Overlap:
    """Compute and data-parallel collectives of one rank, which slow each other down."""

    compute: Lane
    data: Lane
    launched_at: list[int]
    """By collective: how many compute actions have ended when it is launched."""
    awaited_at: list[int]
    """By collective: the place of the first compute action that waits for it or for one behind it."""

    @classmethod
    def of(cls, compute: Lane, data: Lane) -> Overlap:
        """What follows from who needs whom."""
        places = {id(task): place for place, task in enumerate(compute.tasks)}
        positions = {id(task): position for position, task in enumerate(data.tasks)}
        launched = [0] * len(data.tasks)
        for place, task in enumerate(compute.tasks):
            for position in (positions[id(r)] for r in task.readers if id(r) in positions):
                launched[position] = place + 1
        last = len(compute.tasks)
        awaited = [min((places.get(id(r), last) for r in task.readers), default=last) for task in data.tasks]
        return cls(compute, data, list(accumulate(launched, max)), list(accumulate(awaited[::-1], min))[::-1])

    def speeds(self, slow: float) -> Iterator[tuple[Task | None, float]]:
        """The heads of both lanes, and how fast they run when the slow one of two runs at ``slow``."""
        collective = self.data.head
        if collective is None:
            yield self.compute.head, 1.0
            return
        is_launched = self.launched_at[self.data.done] <= self.compute.done
        is_awaited = self.awaited_at[self.data.done] <= self.compute.done
        yield self.compute.head, slow if is_launched else 1.0
        yield collective, 1.0 if is_awaited else slow


def tasks_of(ranks: Sequence[Sequence[Action]]) -> dict[str, Task]:
    """The task of every action by the action's name. Raises ``ScheduleError``."""
    placed: dict[str, tuple[int, Action]] = {}
    for rank, actions in enumerate(ranks):
        for action in actions:
            if action.name in placed:
                raise ScheduleError(f"two actions are called {action.name}")
            if action.seconds < 0.0:
                raise ScheduleError(f"{action.name} takes {action.seconds} s")
            placed[action.name] = rank, action
    tasks: dict[str, Task] = {}
    for name, (_, action) in placed.items():
        tasks[name] = tasks[action.partner] if action.partner in tasks else _task(name, placed)
    for task in {id(task): task for task in tasks.values()}.values():
        _link(task, tasks)
    return tasks


def _task(name: str, placed: dict[str, tuple[int, Action]]) -> Task:
    action = placed[name][1]
    if not action.partner:
        return Task(action.seconds, (placed[name],))
    if action.partner not in placed or placed[action.partner][1].partner != name:
        raise ScheduleError(f"{name} names {action.partner} as its partner, which does not name it")
    pair = (placed[name], placed[action.partner])
    if any(each.stream in (COMPUTE, DATA) for _, each in pair):
        raise ScheduleError(f"{name} has a partner: it cannot run on the {COMPUTE} or {DATA} stream")
    return Task(max(each.seconds for _, each in pair), pair)


def _link(task: Task, tasks: dict[str, Task]) -> None:
    for need in dict.fromkeys(need for _, action in task.actions for need in action.needs):
        if need not in tasks:
            raise ScheduleError(f"{task.name} needs {need}, which nobody does")
        task.missing += 1
        tasks[need].readers.append(task)


def lanes_of(ranks: Sequence[Sequence[Action]], tasks: dict[str, Task]) -> dict[tuple[int, str], Lane]:
    """Every stream by (rank, stream), with its tasks in the order of the rank."""
    lanes: dict[tuple[int, str], Lane] = {}
    for rank, actions in enumerate(ranks):
        for action in actions:
            lane = lanes.setdefault((rank, action.stream), Lane())
            lane.tasks.append(tasks[action.name])
            tasks[action.name].lanes.append(lane)
    return lanes


def waiting_in_a_circle(heads: Sequence[Task], tasks: dict[str, Task]) -> ScheduleError:
    """The error that says what the first of the streams that cannot go on wait for."""
    reasons = []
    for task in dict.fromkeys(heads):
        needs = [need for _, action in task.actions for need in action.needs if tasks[need].end_s < 0.0]
        ahead = [lane.head.name for lane in task.lanes if lane.head not in (None, task)]
        reasons.append(f"{task.name} for {', '.join([*needs, *ahead])}")
    return ScheduleError(f"actions wait for each other and never start: {'; '.join(reasons[:SHOWN])}")
