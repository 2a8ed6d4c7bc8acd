"""Checks a Chrome trace against Google's "Trace Event Format", and that rows can be drawn."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
}
ROUNDING = 1e-6
"""Microseconds."""

TraceEvents = list[dict[str, Any]]


def assert_is_chrome_trace(events: TraceEvents) -> None:
    """Keys, times that only grow, rows whose events do not overlap, arrows with two ends, named rows."""
    for event in events:
        assert REQUIRED[event["ph"]] <= event.keys(), event
    timed = [event for event in events if event["ph"] != "M"]
    assert all(first["ts"] <= second["ts"] for first, second in pairwise(timed))
    assert all(event["ts"] >= 0.0 and event.get("dur", 0.0) >= 0.0 for event in timed)
    _assert_rows_do_not_overlap(events)
    ends: dict[object, str] = defaultdict(str)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]] += event["ph"]
    assert all("".join(sorted(phases)) == "fs" for phases in ends.values())
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"} <= named


def _assert_rows_do_not_overlap(events: TraceEvents) -> None:
    rows: dict[tuple[int, int], TraceEvents] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    for members in rows.values():
        for first, second in pairwise(members):
            assert first["ts"] + first["dur"] <= second["ts"] + ROUNDING, (first, second)


def row(events: TraceEvents, name: str, pid: int = 0) -> TraceEvents:
    """Events of the row of that name."""
    thread = next(
        event["tid"]
        for event in events
        if event["name"] == "thread_name" and event["pid"] == pid and event["args"]["name"] == name
    )
    return [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, thread)]
