"""A module's forward as a trace: run whole, or with one block of each kind run once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from autopar.capture.body import trace_body
from autopar.capture.export import export, output_tree, ready
from autopar.capture.inputs import Example
from autopar.capture.likeness import alike_blocks
from autopar.capture.outline import BLOCK, Outline
from autopar.capture.splice import check_first_call
from autopar.capture.trace import Trace, trace_program

__all__ = ["Traced", "trace_once", "trace_whole"]


@dataclass(frozen=True, slots=True)
class Traced:
    """What torch.export says of a forward."""

    trace: Trace
    output_tree: str
    bodies: list[Trace]
    """What ``autopar::block`` stands for in the trace, by the number of the first call."""


def trace_whole(module: nn.Module, example: Example) -> Traced:
    """Traces every block of a module. Raises CaptureError."""
    program = export(module, example)
    return Traced(trace_program(program), output_tree(program), [])


def trace_once(module: nn.Module, example: Example) -> Traced | None:
    """Traces one block of each kind; None where blocks are few, or anything stands in the way."""
    try:
        with ready(module, example) as fit:
            groups = alike_blocks(module)
            return _trace_outline(module, fit, Outline(module, groups)) if groups else None
    except Exception:  # whatever it is, tracing the whole module meets it too, or does not
        return None


def _trace_outline(module: nn.Module, example: Example, outline: Outline) -> Traced | None:
    with outline.installed():
        program = torch.export.export(module, example.args, example.kwargs, strict=False)
    trace = trace_program(program)
    uses = Counter(call.arguments[2] for call in trace.calls if call.target is BLOCK)
    if uses.total() != outline.stand_ins or not uses:
        return None
    bodies = []
    for place, first in enumerate(outline.first_calls):
        body = trace_body(module.get_submodule(first.module), first) if uses[place] else Trace()
        if uses[place]:
            check_first_call(trace, first, body)
        bodies.append(body)
    return Traced(trace, output_tree(program), bodies)
