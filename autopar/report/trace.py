"""A played step as a Chrome trace (JSON that ui.perfetto.dev and chrome://tracing open).

Format: Google, "Trace Event Format": complete events (X), counters (C), flows (s, f) and names (M), microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from autopar.report.step_blocks import Detail
from cost_models.schedule_actions import KINDS
from cost_models.timeline import COLLECTIVE, COMPUTE, TRANSFER_STREAMS, Event, Timeline

__all__ = ["ROWS", "TraceEvent", "trace_events"]

TraceEvent = dict[str, object]

BLOCKS, OPERATORS, COLLECTIVES, DATA_PARALLEL = "blocks", "compute", "collectives", "data-parallel"
ROWS = (BLOCKS, OPERATORS, COLLECTIVES, DATA_PARALLEL, *TRANSFER_STREAMS.values())
"""Rows of every rank, top to bottom; their numbers are those of the trace's threads."""

MEMORY = "memory"


def trace_events(
    timeline: Timeline, titles: Mapping[int, str], details: Mapping[str, Detail]
) -> list[TraceEvent]:
    """Events of every rank, ordered by time.

    ``titles`` has a number and a title for each rank of the timeline; ``details`` say more of actions by name.
    What takes no time and has no details is left out.
    """
    found: list[TraceEvent] = []
    named: list[TraceEvent] = []
    for (number, title), events, levels in zip(titles.items(), timeline.ranks, timeline.memory, strict=True):
        shown = [event for event in events if event.action.name in details or event.end_s > event.start_s]
        named += _names(number, title, shown)
        found += _slices(number, shown, details)
        found += _spans(number, shown, details)
        found += (
            _event("C", number, MEMORY, second, args={"bytes": held}) for second, held in _changes(levels)
        )
    found += _arrows(timeline, list(titles))
    found.sort(key=lambda event: event["ts"])  # type: ignore[arg-type, return-value]
    return [*named, *found]


def _slices(rank: int, events: Sequence[Event], details: Mapping[str, Detail]) -> Iterator[TraceEvent]:
    for event in events:
        action = event.action
        detail = details.get(action.name)
        facts: dict[str, object] = {"action": action.name, "what": KINDS.get(action.kind, "collective")}
        if detail:
            facts |= {"block": detail.block, "pass": detail.direction, **detail.facts}
        facts["seconds"] = action.seconds
        if action.needs:
            facts["needs"] = list(action.needs)
        yield _slice(rank, row_of(event), detail.label if detail else action.name, event, facts)


def row_of(event: Event) -> str:
    """The row on which an event is shown."""
    if event.action.kind == COLLECTIVE:
        return COLLECTIVES
    if event.action.kind in ("UNSHARD", "REDUCE_GRAD"):
        return DATA_PARALLEL
    return OPERATORS if event.action.stream == COMPUTE else event.action.stream


def _spans(rank: int, events: Sequence[Event], details: Mapping[str, Detail]) -> Iterator[TraceEvent]:
    """One event for each pass over a block."""
    shown = [event for event in events if event.action.name in details]
    for (block, direction), members in groupby(shown, lambda each: _pass_of(details[each.action.name])):
        inside = list(members)
        span = Event(inside[0].action, inside[0].start_s, inside[-1].end_s)
        yield _slice(rank, BLOCKS, f"{block} {direction}", span, {"operators": len(inside)})


def _pass_of(detail: Detail) -> tuple[str, str]:
    return detail.block, detail.direction


def _slice(rank: int, row: str, name: str, event: Event, facts: dict[str, object]) -> TraceEvent:
    made = _event("X", rank, name, event.start_s, cat=row, tid=ROWS.index(row), args=facts)
    made["dur"] = (_nanoseconds(event.end_s) - _nanoseconds(event.start_s)) / 1000
    return made


def _changes(levels: Sequence[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    """The level at every time at which it changes, where it changes at once the highest and the last."""
    for second, group in groupby(levels, lambda level: level[0]):
        held = [level for _, level in group]
        if max(held) != held[-1]:
            yield second, max(held)
        yield second, held[-1]


def _arrows(timeline: Timeline, numbers: Sequence[int]) -> Iterator[TraceEvent]:
    """From each send that takes time to its receive."""
    places = {
        event.action.name: (numbers[rank], event)
        for rank, events in enumerate(timeline.ranks)
        for event in events
    }
    for number, send in list(places.values()):
        if send.action.kind in ("SEND_F", "SEND_B") and send.end_s > send.start_s:
            for phase, name in (("s", send.action.name), ("f", send.action.partner)):
                yield _arrow(phase, f"{number}.{send.action.name}", *places[name])


def _arrow(phase: str, identity: str, rank: int, event: Event) -> TraceEvent:
    row = ROWS.index(row_of(event))
    arrow = _event(phase, rank, "transfer", event.start_s, cat="transfer", tid=row, id=identity)
    return arrow | ({"bp": "e"} if phase == "f" else {})


def _event(phase: str, rank: int, name: str, second: float, **more: object) -> TraceEvent:
    return {"ph": phase, "name": name, "pid": rank, "ts": _nanoseconds(second) / 1000, **more}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _names(rank: int, title: str, events: Sequence[Event]) -> Iterator[TraceEvent]:
    yield _meta(rank, 0, "process_name", {"name": title})
    yield _meta(rank, 0, "process_sort_index", {"sort_index": rank})
    for row in sorted({row_of(event) for event in events} | {BLOCKS}, key=ROWS.index):
        yield _meta(rank, ROWS.index(row), "thread_name", {"name": row})
        yield _meta(rank, ROWS.index(row), "thread_sort_index", {"sort_index": ROWS.index(row)})


def _meta(rank: int, thread: int, name: str, facts: dict[str, object]) -> TraceEvent:
    return {"ph": "M", "pid": rank, "tid": thread, "name": name, "ts": 0, "args": facts}
