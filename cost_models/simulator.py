"""Plays actions on the streams of ranks, event by event: the timeline of a step.

A stream runs its actions one after the other, in the order in which its rank lists them. An action starts when
its stream is free, everything that it needs has ended and, if it has a partner, that one can start too.

**Slowdown.** Compute and the collectives of the data-parallel engine share a device, so that each runs at
1/``overlap_slowdown`` of its speed while the other is there:

- compute is slow while a collective is *launched*: the compute stream has passed everything that the collective
  needs of it, and the collective has not ended (one that waits for another rank holds its multiprocessors);
- a collective is slow until the compute stream comes to an action that waits for it, so that one in a pipeline's
  bubble is taken to be as slow as one beside compute. Sends and receives slow nothing down.

Both rules read only how far the other stream has come, and only in one direction: further is never slower. So a
longer action never makes any action end earlier. Slowing down exactly while both run would break this: a delayed
collective could move out of the way of compute that the step waits for, and a slower operator shorten the step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from cost_models.simulator_tasks import (
    Lane,
    Overlap,
    ScheduleError,
    Task,
    lanes_of,
    tasks_of,
    waiting_in_a_circle,
)
from cost_models.timeline import COMPUTE, DATA, Action, Event, Timeline

__all__ = ["ScheduleError", "simulate"]


def simulate(
    ranks: Sequence[Sequence[Action]],
    *,
    overlap_slowdown: float = 1.0,
    resting_bytes: Sequence[int] = (),
) -> Timeline:
    """Play each rank's actions, in its order on each stream.

    ``overlap_slowdown`` (at least 1) is ``Device.overlap_slowdown``; ``resting_bytes`` what each rank holds all
    the time, nothing by default. Raises ``ScheduleError`` for actions that are named twice, need what is not
    there, or wait for each other.
    """
    if overlap_slowdown < 1.0:
        raise ValueError(f"overlap_slowdown is {overlap_slowdown}: it cannot be below 1")
    player = _Player(ranks, overlap_slowdown)
    player.play()
    resting = tuple(resting_bytes) or (0,) * len(ranks)
    return Timeline(
        ranks=tuple(_events(player, actions) for actions in ranks),
        memory=tuple(_levels(held, changes) for held, changes in zip(resting, player.changes, strict=True)),
    )


class _Player:
    """The state of a step that is being played."""

    def __init__(self, ranks: Sequence[Sequence[Action]], overlap_slowdown: float) -> None:
        self.tasks = tasks_of(ranks)
        self.changes: list[list[tuple[float, int]]] = [[] for _ in ranks]
        """By rank: (second, bytes more or less)."""
        self._slow = 1.0 / overlap_slowdown
        self._lanes = lanes_of(ranks, self.tasks)
        self._overlaps: dict[int, Overlap] = {}
        for rank in range(len(ranks)):
            compute, data = self._lanes.get((rank, COMPUTE)), self._lanes.get((rank, DATA))
            if compute and data:
                self._overlaps[id(compute)] = self._overlaps[id(data)] = Overlap.of(compute, data)
        self._calendar: list[tuple[float, int, int, Task]] = []
        """(end, number of the entry, version, task), soonest first."""
        self._entries = 0
        self._now_s = 0.0

    def play(self) -> None:
        """Raises ``ScheduleError`` when some actions can never start."""
        self._start(lane.head for lane in self._lanes.values())
        while self._calendar:
            self._advance()
        stuck = [lane.head for lane in self._lanes.values() if lane.head is not None]
        if stuck:
            raise waiting_in_a_circle(stuck, self.tasks)

    def _advance(self) -> None:
        """To the next time at which something ends: ends of that time first, then starts."""
        ended: list[Task] = []
        while self._calendar and (not ended or self._calendar[0][0] == self._now_s):
            end_s, _, version, task = heapq.heappop(self._calendar)
            if version == task.version:
                self._now_s = end_s
                self._end(task)
                ended.append(task)
        freed = [lane for task in ended for lane in task.lanes]
        self._start(lane.head for lane in freed)
        self._start(reader for task in ended for reader in task.readers)
        for lane in freed:
            self._change_speeds(lane)

    def _end(self, task: Task) -> None:
        task.end_s = self._now_s
        task.version += 1
        for lane in task.lanes:
            lane.done += 1
        for reader in task.readers:
            reader.missing -= 1
        for rank, action in task.actions:
            self.changes[rank].append((self._now_s, -action.frees_bytes))

    def _start(self, candidates: Iterable[Task | None]) -> None:
        for task in candidates:
            if task is not None and task.can_start:
                task.start_s = task.since_s = self._now_s
                task.remaining_s, task.speed = task.seconds, self._speed(task)
                self._enter(task)
                for rank, action in task.actions:
                    self.changes[rank].append((self._now_s, action.allocates_bytes))

    def _speed(self, task: Task) -> float:
        overlap = self._overlaps.get(id(task.lanes[0]))
        if overlap is None:
            return 1.0
        return next(speed for head, speed in overlap.speeds(self._slow) if head is task)

    def _change_speeds(self, lane: Lane) -> None:
        """After ``lane`` has moved on."""
        overlap = self._overlaps.get(id(lane))
        for task, speed in overlap.speeds(self._slow) if overlap else ():
            if task is not None and task.is_running and task.speed != speed:
                task.remaining_s -= (self._now_s - task.since_s) * task.speed
                task.since_s, task.speed = self._now_s, speed
                self._enter(task)

    def _enter(self, task: Task) -> None:
        """Into the calendar, at the time at which it ends if nothing changes."""
        task.version += 1
        self._entries += 1
        end_s = self._now_s + max(task.remaining_s, 0.0) / task.speed
        heapq.heappush(self._calendar, (end_s, self._entries, task.version, task))


def _events(player: _Player, actions: Sequence[Action]) -> tuple[Event, ...]:
    events = [
        Event(action, player.tasks[action.name].start_s, player.tasks[action.name].end_s)
        for action in actions
    ]
    return tuple(sorted(events, key=lambda event: (event.start_s, event.end_s)))


def _levels(resting: int, changes: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Bytes held after each change."""
    held, levels = resting, [(0.0, resting)]
    for second, change in changes:
        if change:
            held += change
            levels.append((second, held))
    return tuple(levels)
