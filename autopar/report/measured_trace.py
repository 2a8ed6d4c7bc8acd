"""A trace that torch.profiler wrote, to stand beside the predicted one in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopar.errors import TraceError
from autopar.report.trace import TraceEvent

__all__ = ["measured_events"]

FIRST_PROCESS = 1_000_000
"""Process numbers of measured rows begin here, above those of predicted ranks."""

STEP = "ProfilerStep"
"""torch.profiler calls each step ``ProfilerStep#3``."""


def measured_events(trace: object) -> list[TraceEvent]:
    """Events of a parsed Chrome trace from torch.profiler, its first step (or kernel) at time 0.

    What ended before is left out. Processes get numbers of their own, and titles that begin with ``measured``.
    Raises ``TraceError`` for anything that is no such trace.
    """
    events = _events(trace)
    start = _start(events)
    numbers = {pid: FIRST_PROCESS + place for place, pid in enumerate(_processes(events))}
    moved = (_moved(event, start, numbers) for event in events if not _is_title(event))
    return [*_titles(numbers, events), *(event for event in moved if event is not None)]


def _events(trace: object) -> list[dict[str, Any]]:
    """Events with a process and, but for names, a time."""
    events = trace.get("traceEvents") if isinstance(trace, Mapping) else trace
    if not isinstance(events, list):
        raise TraceError("the measured trace has no traceEvents: export it with export_chrome_trace.")
    found = [event for event in events if isinstance(event, dict) and "ph" in event and "pid" in event]
    timed = [event for event in found if event["ph"] == "M" or isinstance(event.get("ts"), int | float)]
    if not any(event["ph"] == "X" for event in timed):
        raise TraceError("the measured trace has no complete events (ph X): was anything profiled?")
    return timed


def _start(events: Sequence[dict[str, Any]]) -> float:
    """Microseconds at which the step begins: its mark, else the first kernel, else the first event."""
    complete = [event for event in events if event["ph"] == "X"]
    marks = [event for event in complete if str(event.get("name", "")).startswith(STEP)]
    kernels = [event for event in complete if event.get("cat") == "kernel"]
    return min(float(event["ts"]) for event in marks or kernels or complete)


def _processes(events: Sequence[dict[str, Any]]) -> list[object]:
    return list(dict.fromkeys(event["pid"] for event in events))


def _moved(event: dict[str, Any], start: float, numbers: Mapping[object, int]) -> TraceEvent | None:
    """An event in our time and numbers, without what lies before time 0; None where nothing is left."""
    moved = {**event, "pid": numbers[event["pid"]]}
    if event["ph"] == "M":
        return moved
    begins, length = float(event["ts"]) - start, float(event.get("dur", 0.0))
    if begins >= 0.0:
        return moved | {"ts": begins}
    return moved | {"ts": 0.0, "dur": begins + length} if begins + length > 0.0 else None


def _is_title(event: dict[str, Any]) -> bool:
    return event["ph"] == "M" and event.get("name") in ("process_name", "process_sort_index")


def _titles(numbers: Mapping[object, int], events: Sequence[dict[str, Any]]) -> list[TraceEvent]:
    """Processes with kernels first, then the others, all below the predicted ones."""
    names = {
        event["pid"]: event.get("args", {}).get("name", "")
        for event in events
        if event.get("name") == "process_name"
    }
    with_kernels = {event["pid"] for event in events if event.get("cat") == "kernel"}
    titles: list[TraceEvent] = []
    for pid, number in numbers.items():
        title = f"measured: {names.get(pid) or 'process'} {pid}"
        place = number if pid in with_kernels else number + len(numbers)
        for name, facts in (("process_name", {"name": title}), ("process_sort_index", {"sort_index": place})):
            titles.append({"ph": "M", "name": name, "pid": number, "tid": 0, "ts": 0, "args": facts})
    return titles
