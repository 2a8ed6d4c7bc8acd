"""``autopar trace``: the predicted step of a plan as a Chrome trace, with a measured one beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli.console import log
from autopar.errors import TraceError

if TYPE_CHECKING:
    from autopar.report.predicted_trace import PredictedTrace

__all__ = ["trace"]


def trace(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the trace goes (JSON).", show_default=False)
    ],
    measured: Annotated[
        Path | None,
        typer.Option(
            help="A trace of torch.profiler (`autopar run PLAN --profile FILE`) to show beside the prediction.",
            show_default=False,
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="How many of the ranks that do the same to show.")] = 1,
) -> None:
    """Write the predicted step as a trace for ui.perfetto.dev: every operator, collective and byte held."""
    from autopar.plan.files import read_plan
    from autopar.report.anatomy import anatomy
    from autopar.report.measured_trace import measured_events
    from autopar.report.predicted_trace import predicted_trace

    beside = measured_events(_read(measured)) if measured else []
    predicted = predicted_trace(anatomy(read_plan(path)), ranks)
    content = {
        "traceEvents": [*predicted.events, *beside],
        "displayTimeUnit": "ms",
        "autopar": predicted.facts(),
    }
    _write(output, json.dumps(content, ensure_ascii=False))
    for line in _explanation(predicted):
        log(line)
    log(f"wrote {output}: open it at https://ui.perfetto.dev")


def _explanation(predicted: PredictedTrace) -> list[str]:
    """The step's length, and why it is not the plan's where it is not."""
    from autopar.report.units import show_seconds

    played_s, planned_s = predicted.timeline.step_s, predicted.plan_step_s
    lines = [f"a step takes {show_seconds(played_s)} on the timeline, {show_seconds(planned_s)} in the plan"]
    return lines + [
        f"  {cause}: {'+' if seconds > 0 else '−'}{show_seconds(abs(seconds))}"
        for cause, seconds in predicted.differences_s.items()
        if abs(seconds) > 1e-3 * planned_s
    ]


def _read(path: Path) -> object:
    """A JSON file, packed with gzip or not. Raises ``TraceError``."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except OSError as error:
        raise TraceError(
            f"the measured trace {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    except (ValueError, RecursionError, EOFError) as error:
        raise TraceError(
            f"the measured trace {path} is not JSON: {error}. Write it with `autopar run PLAN --profile FILE`."
        ) from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises ``TraceError``."""
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise TraceError(f"the trace cannot be written to {path}: {error.strerror or error}.") from error
