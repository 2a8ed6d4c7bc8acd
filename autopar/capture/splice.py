"""Puts the calls of a block in the place of the operators that stand for it."""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.body import WRAPPED, UnlikeFirstCallError
from autopar.capture.outline import BLOCK, FirstCall
from autopar.capture.trace import Call, Slot, Trace, map_slots

__all__ = ["check_first_call", "splice"]


def splice(trace: Trace, bodies: list[Trace], canonical: dict[str, str]) -> None:
    """Replaces every ``autopar::block`` by its body; ``canonical`` gives the one name of each parameter.

    Raises UnlikeFirstCallError where a block was called past its module, which leaves no path to its parts.
    """
    slots = {name: Slot(slot) for slot, name in trace.parameters.items()}
    same: dict[Slot, Slot] = {}
    calls: list[Call] = []
    for call in trace.calls:
        call = call.with_slots(lambda slot: same.get(slot, slot)) if same else call
        if call.target is not BLOCK:
            calls.append(call)
            continue
        given, path, place, _ = call.arguments
        if call.modules[-1].partition("@")[0] != path:
            raise UnlikeFirstCallError
        body = bodies[place]
        known = {
            index: slots[canonical[path + name.removeprefix(WRAPPED)]]
            for index, name in body.parameters.items()
        }
        known.update(zip(body.inputs, given, strict=False))
        calls.extend(_copied(trace, body, known, call))
        same.update(
            (Slot(result), known[output]) for result, output in zip(call.results, body.outputs, strict=True)
        )
    trace.calls = calls
    trace.outputs = [same.get(Slot(output), Slot(output)).index for output in trace.outputs]


def _copied(trace: Trace, body: Trace, known: dict[int, Slot], at: Call) -> list[Call]:
    """The body's calls on tensors of the trace; adds the tensors that they make to ``known``."""
    for constant, data in body.constants.items():
        known[constant] = trace.add(body.tensors[constant])
        trace.constants[known[constant].index] = data
    copies = []
    for call in body.calls:
        for slot in call.results:
            known[slot] = trace.add(body.tensors[slot])
        copies.append(
            replace(
                call,
                arguments=map_slots(call.arguments, lambda slot: known[slot.index]),
                keywords=map_slots(call.keywords, lambda slot: known[slot.index]),
                results=tuple(known[slot].index for slot in call.results),
                aliases=None if call.aliases is None else known[call.aliases].index,
                modules=(*at.modules, *_inner(call, at.modules[-1])),
                records_gradient=call.records_gradient and at.records_gradient,
            )
        )
    return copies


def _inner(call: Call, block: str) -> list[str]:
    """The modules in a block that a call of its body runs in, named as calls of their own for each use."""
    path, _, use = block.partition("@")
    named = []
    for each in call.modules[1:]:
        inner, _, again = each.partition("@")
        suffix = f"@{use or 0}.{again or 0}" if use or again else ""
        named.append(f"{path}{inner.removeprefix(WRAPPED)}{suffix}")
    return named


def check_first_call(trace: Trace, first: FirstCall, body: Trace) -> None:
    """Raises UnlikeFirstCallError unless a block did in the model what its body, traced alone, does."""
    block = f"{first.module}@{first.number}" if first.number else first.module
    ran = [call for call in trace.calls if block in call.modules]
    if len(ran) != len(body.calls):
        raise UnlikeFirstCallError
    known: dict[int, int] = {}
    for call, alone in zip(ran, body.calls, strict=True):
        pairs = zip(_tensors(call), _tensors(alone), strict=False)
        is_same = (
            _bare(call, trace, block) == _bare(alone, body, "")
            and call.records_gradient == (alone.records_gradient and first.records_gradient)
            and all(known.setdefault(theirs, mine) == mine for mine, theirs in pairs)
        )
        if not is_same:
            raise UnlikeFirstCallError


def _tensors(call: Call) -> list[int]:
    return [*call.reads, *call.results]


def _bare(call: Call, trace: Trace, block: str) -> str:
    """A call as text, with shapes and dtypes in the place of tensors."""
    depth = call.modules.index(block) + 1
    paths = [each.partition("@")[0] for each in call.modules[depth:]]
    start = block.partition("@")[0] or WRAPPED
    arguments, keywords = (
        map_slots(part, lambda slot: trace.tensors[slot.index]) for part in (call.arguments, call.keywords)
    )
    results = [trace.tensors[slot] for slot in call.results]
    inner = [path.removeprefix(start) for path in paths]
    return repr((str(call.target), arguments, keywords, results, call.returns_list, call.source, inner))
