"""What each run of calls reads and hands on."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.segments import Run
from autopar.capture.trace import Trace

__all__ = ["Wiring", "wire"]


@dataclass(frozen=True, slots=True)
class Wiring:
    """A run with its tensors, as slots of the trace in the order of first use."""

    run: Run
    inputs: tuple[int, ...]
    parameters: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    read: frozenset[int]
    """Every tensor that a call of this run, or a later run, reads."""

    @property
    def results(self) -> tuple[int, ...]:
        """Tensors that the run makes and somebody reads, in the order of production."""
        return tuple(slot for call in self.run.calls for slot in call.results if slot in self.read)

    @property
    def slots(self) -> tuple[int, ...]:
        """Every tensor of the run; equal runs list equal tensors at equal places."""
        return (*self.inputs, *self.parameters, *self.constants, *self.results)


def wire(trace: Trace, runs: list[Run]) -> list[Wiring]:
    """Finds the inputs and outputs of every run; linear in the number of calls."""
    made_in = {slot: place for place, run in enumerate(runs) for call in run.calls for slot in call.results}
    reads = [tuple(dict.fromkeys(slot for call in run.calls for slot in call.reads)) for run in runs]
    handed_on = set(trace.outputs)
    for place, slots in enumerate(reads):
        handed_on.update(slot for slot in slots if made_in.get(slot) != place)
    return [
        _wire(trace, run, slots, place, made_in, handed_on)
        for place, (run, slots) in enumerate(zip(runs, reads, strict=True))
    ]


def _wire(
    trace: Trace, run: Run, reads: tuple[int, ...], place: int, made_in: dict[int, int], handed_on: set[int]
) -> Wiring:
    results = [slot for call in run.calls for slot in call.results]
    return Wiring(
        run=run,
        inputs=tuple(s for s in reads if made_in.get(s, -1) != place and not _is_held(trace, s)),
        parameters=tuple(s for s in reads if s in trace.parameters),
        constants=tuple(s for s in reads if s in trace.constants),
        outputs=tuple(slot for slot in results if slot in handed_on),
        read=frozenset(reads).union(slot for slot in results if slot in handed_on),
    )


def _is_held(trace: Trace, slot: int) -> bool:
    return slot in trace.parameters or slot in trace.constants
