"""Runs of calls to segment types: equal runs share one, and every value gets a readable name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from torch import nn

from autopar.capture.arguments import plain_arguments
from autopar.capture.graph import Constant, Operator, Parameter, SegmentCall, SegmentType, Value
from autopar.capture.names import CLASS_NAMES, Namer, last_words, module_results
from autopar.capture.parameters import ParameterNames
from autopar.capture.trace import Call, Trace
from autopar.capture.wiring import Wiring

__all__ = ["Folded", "Folder"]


@dataclass(frozen=True, slots=True)
class Folded:
    """The parts of a ``Graph`` that come out of the runs."""

    types: tuple[SegmentType, ...]
    calls: tuple[SegmentCall, ...]
    values: dict[str, Value]
    outputs: tuple[str, ...]


class Folder:
    """Builds segment types and calls from wirings, in time linear in the number of operators."""

    def __init__(self, trace: Trace, names: ParameterNames, gradients: set[int], module: nn.Module) -> None:
        self.trace = trace
        self.names = names
        self.gradients = gradients
        self.module = module
        self.module_results = module_results(trace)

    def fold(self, wirings: list[Wiring], inputs: dict[int, str]) -> Folded:
        """Folds the runs of a graph whose input tensors have the names ``inputs``."""
        groups: dict[str, list[Wiring]] = {}
        keys = [self._structure(wiring, place) for place, wiring in enumerate(wirings)]
        for key, wiring in zip(keys, wirings, strict=True):
            groups.setdefault(key, []).append(wiring)
        graph_names = dict(inputs)
        namer = Namer()
        for name in inputs.values():
            namer.take(name)
        for wiring in wirings:
            self._name_results(wiring, graph_names, namer)
        class_names = self._class_names([group[0] for group in groups.values()])
        types = {
            key: self._segment_type(name, group, graph_names)
            for name, (key, group) in zip(class_names, groups.items(), strict=True)
        }
        return Folded(
            types=tuple(types.values()),
            calls=tuple(
                _segment_call(types[key].name, wiring, graph_names)
                for key, wiring in zip(keys, wirings, strict=True)
            ),
            values={name: self._value(slot, name) for slot, name in graph_names.items()},
            outputs=tuple(graph_names[slot] for slot in self.trace.outputs),
        )

    def _structure(self, wiring: Wiring, place: int) -> str:
        """Text that is equal for two runs exactly when one segment type serves both."""
        if not wiring.run.module:
            return f"root {place}"
        numbers = {slot: f"%{number}" for number, slot in enumerate(wiring.slots)}
        parts = [
            [(number, self._value(slot, "")) for slot, number in numbers.items()],
            len(wiring.inputs),
            [self._parameter(slot, "", wiring) for slot in wiring.parameters],
            [self._constant(slot, "") for slot in wiring.constants],
            [self._operator(call, numbers, "", wiring) for call in wiring.run.calls],
            [numbers[slot] for slot in wiring.outputs],
        ]
        return repr(parts)

    def _name_results(self, wiring: Wiring, graph_names: dict[int, str], namer: Namer) -> None:
        """Names what a run hands on: after its module for a block, after its operators for the root."""
        if wiring.run.module:
            for slot in wiring.outputs:
                graph_names[slot] = namer.take(wiring.run.module.replace(".", "_"))
            return
        texts = self._result_names(wiring)
        for slot in wiring.outputs:
            text, numbered = texts[slot]
            graph_names[slot] = namer.take(text, numbered=numbered)

    def _class_names(self, wirings: list[Wiring]) -> list[str]:
        """``Root0``, ``Root1``… for runs of the root module, the block's own class name for the others."""
        namer, roots = Namer(CLASS_NAMES), count()
        return [
            namer.take(
                type(self.module.get_submodule(w.run.module)).__name__
                if w.run.module
                else f"Root{next(roots)}"
            )
            for w in wirings
        ]

    def _segment_type(self, name: str, group: list[Wiring], graph_names: dict[int, str]) -> SegmentType:
        first = group[0]
        names = self._local_names(group, graph_names)
        return SegmentType(
            name=name,
            inputs=tuple(names[slot] for slot in first.inputs),
            parameters=tuple(self._parameter(slot, names[slot], first) for slot in first.parameters),
            constants=tuple(self._constant(slot, names[slot]) for slot in first.constants),
            operators=_named(self._operator(call, names, call.source, first) for call in first.run.calls),
            outputs=tuple(names[slot] for slot in first.outputs),
            values={names[slot]: self._value(slot, names[slot]) for slot in first.slots},
        )

    def _local_names(self, group: list[Wiring], graph_names: dict[int, str]) -> dict[int, str]:
        """Names the tensors of the group's first run."""
        first, namer = group[0], Namer()
        names: dict[int, str] = {}
        for place, slot in enumerate(first.inputs):
            given = {graph_names[wiring.inputs[place]] for wiring in group}
            is_shared = len(given) == 1 and (len(group) > 1 or not first.run.module)
            names[slot] = namer.take(given.pop() if is_shared else "x")
        for slot in first.parameters:
            names[slot] = namer.take(self._path(slot, first).replace(".", "_"))
        for slot in first.constants:
            names[slot] = namer.take("constant", numbered=True)
        for slot, (text, numbered) in self._result_names(first).items():
            names[slot] = namer.take(text, numbered=numbered)
        return names

    def _result_names(self, wiring: Wiring) -> dict[int, tuple[str, bool]]:
        """Proposes a name for each result, its module's or its operator's, and whether it needs a number."""
        names = {}
        for call in wiring.run.calls:
            path = _relative_module(call, wiring)
            for slot in call.results:
                if slot in wiring.read:
                    is_result = bool(path) and slot in self.module_results
                    names[slot] = (last_words(path), False) if is_result else (call.name, True)
        return names

    def _path(self, slot: int, wiring: Wiring) -> str:
        path = self.names.inside(self.trace.parameters[slot], wiring.run.module)
        assert path is not None, "a run with a foreign parameter was not merged into the root's"
        return path

    def _parameter(self, slot: int, name: str, wiring: Wiring) -> Parameter:
        return Parameter(name, self._path(slot, wiring), slot in self.trace.buffers)

    def _constant(self, slot: int, name: str) -> Constant:
        return Constant(name, self.trace.constants[slot].tolist())

    def _value(self, slot: int, name: str) -> Value:
        tensor = self.trace.tensors[slot]
        return Value(name, tensor.shape, str(tensor.dtype).removeprefix("torch."), slot in self.gradients)

    def _operator(self, call: Call, names: dict[int, str], source: str, wiring: Wiring) -> Operator:
        arguments, keywords = plain_arguments(call, names.__getitem__)
        results = tuple(names.get(slot) for slot in call.results)
        return Operator(
            name=next((name for name in results if name), ""),
            target=str(call.target),
            arguments=arguments,
            keywords=keywords,
            results=results,
            source=source,
            module=_relative_module(call, wiring),
        )


def _named(operators: Iterable[Operator]) -> tuple[Operator, ...]:
    """Gives a name to operators that only write to a buffer: they have no result to be named after."""
    return tuple(
        operator if operator.name else replace(operator, name=f"effect_{place}")
        for place, operator in enumerate(operators)
    )


def _segment_call(type_name: str, wiring: Wiring, graph_names: dict[int, str]) -> SegmentCall:
    return SegmentCall(
        type=type_name,
        module=wiring.run.module,
        arguments=tuple(graph_names[slot] for slot in wiring.inputs),
        results=tuple(graph_names[slot] for slot in wiring.outputs),
    )


def _relative_module(call: Call, wiring: Wiring) -> str:
    """The path of the innermost module that made a call, relative to its segment's module."""
    innermost = call.modules[-1].partition("@")[0]
    block = wiring.run.module
    return innermost.removeprefix(block).removeprefix(".") if block else innermost
