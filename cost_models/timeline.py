"""What playing a schedule gives: when each action ran, how idle ranks were, and what they held when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "COLLECTIVE",
    "COMMUNICATION",
    "COMPUTE",
    "DATA",
    "TRANSFER_STREAMS",
    "Action",
    "Event",
    "Timeline",
]

COMPUTE = "compute"
"""The stream of operators, and of collectives that operators wait for."""

DATA = "data"
"""The stream of the data-parallel engine: gathers of parameters and sums of gradients."""

COLLECTIVE = "COLLECTIVE"
"""Kind of a collective on the compute stream: a tensor-parallel sum, a conversion between layouts."""

COMMUNICATION = frozenset({COLLECTIVE, "UNSHARD", "REDUCE_GRAD", "SEND_F", "RECV_F", "SEND_B", "RECV_B"})
"""Kinds of actions that send or receive."""

TRANSFER_STREAMS = {
    "SEND_F": "send forward",
    "RECV_F": "receive forward",
    "SEND_B": "send backward",
    "RECV_B": "receive backward",
}
"""Streams of sends and receives by kind. Each direction has one neighbour: a channel of its own."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that one rank does on one of its streams."""

    name: str
    """Unique among the actions of all ranks: ``2F0``."""
    kind: str
    """A word of ``cost_models.schedule_actions.KINDS``, or ``COLLECTIVE``."""
    stream: str
    """``COMPUTE``, ``DATA``, or any other name: sends, receives."""
    seconds: float
    """With nothing else running beside it. Of two partners the longer counts."""
    needs: tuple[str, ...] = ()
    """Actions, of any rank, that must have ended before."""
    partner: str = ""
    """An action of another rank that runs at the same time: the receive of a send, and the other way."""
    allocates_bytes: int = 0
    """When it starts, temporaries included."""
    frees_bytes: int = 0
    """When it has ended, temporaries included."""


@dataclass(frozen=True, slots=True)
class Event:
    """An action and when it ran, in seconds since the step began."""

    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One played step."""

    ranks: tuple[tuple[Event, ...], ...]
    """By rank, in the order of their starts."""
    memory: tuple[tuple[tuple[float, int], ...], ...]
    """By rank: (second, bytes held from then on), beginning at second 0."""

    @property
    def step_s(self) -> float:
        """From the first start to the last end."""
        return max((event.end_s for events in self.ranks for event in events), default=0.0)

    @property
    def bubble_fraction(self) -> float:
        """Share of the step in which a rank does nothing at all, on average over ranks."""
        if not self.step_s:
            return 0.0
        return sum(map(self.bubble_s, range(len(self.ranks)))) / (len(self.ranks) * self.step_s)

    def bubble_s(self, rank: int) -> float:
        """Seconds in which ``rank`` neither computes nor communicates."""
        return self.step_s - _length(_spans(self.ranks[rank]))

    def busy_s(self, rank: int, stream: str = COMPUTE) -> float:
        """Seconds in which a stream of ``rank`` has something to do."""
        return _length(_spans(event for event in self.ranks[rank] if event.action.stream == stream))

    def exposed_communication_s(self, rank: int) -> float:
        """Seconds in which ``rank`` communicates and no operator runs beside it."""
        everything = _length(_spans(self.ranks[rank]))
        return everything - _length(_spans(event for event in self.ranks[rank] if _computes(event.action)))

    def peak_bytes(self, rank: int) -> int:
        """The most that ``rank`` holds at any time."""
        return max(held for _, held in self.memory[rank])


def _computes(action: Action) -> bool:
    return action.stream == COMPUTE and action.kind not in COMMUNICATION


def _spans(events: Iterable[Event]) -> Sequence[Interval]:
    return sorted((event.start_s, event.end_s) for event in events)


def _length(spans: Sequence[Interval]) -> float:
    """Seconds that sorted intervals cover together."""
    covered, until = 0.0, 0.0
    for start, end in spans:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
