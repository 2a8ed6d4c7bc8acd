"""Reading one operator call: its tensor operands, its literal arguments, the shapes it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from autopar.capture.graph import Argument, Operator, Ref, Value

__all__ = ["Call", "references"]


def _references_in(argument: Argument) -> Iterator[str]:
    if isinstance(argument, Ref):
        yield argument.value
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _references_in(item)


def references(operator: Operator) -> tuple[str, ...]:
    """Names of the values the operator reads, one per mention, positional arguments first."""
    arguments = (*operator.arguments, *(value for _, value in operator.keywords))
    return tuple(name for argument in arguments for name in _references_in(argument))


@dataclass(frozen=True)
class Call:
    """An operator together with the values around it."""

    operator: Operator
    values: Mapping[str, Value]

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        """The tensors the call reads, one per mention."""
        return tuple(self.values[name] for name in references(self.operator))

    @cached_property
    def results(self) -> tuple[Value | None, ...]:
        return tuple(self.values[name] if name is not None else None for name in self.operator.results)

    @property
    def result(self) -> Value:
        """The only result, or the first one that is used; the tensor written to, where there is none."""
        return next((value for value in self.results if value is not None), None) or self.operands[0]

    def argument(self, position: int, name: str, default: Argument = None) -> Argument:
        """A literal argument, wherever the call passes it."""
        for keyword, value in self.operator.keywords:
            if keyword == name:
                return value
        arguments = self.operator.arguments
        return arguments[position] if position < len(arguments) else default

    def shape_of(self, argument: Argument) -> tuple[int, ...]:
        """Shape of an argument that is a tensor."""
        if not isinstance(argument, Ref):
            raise TypeError(f"{self.operator.name}: {argument!r} is not a tensor")
        return self.values[argument.value].shape

    def tensor_positions(self) -> tuple[int, ...]:
        """For each operand, the positional argument it stands in; keywords count on after the last one."""
        positions = []
        arguments = (*self.operator.arguments, *(value for _, value in self.operator.keywords))
        for position, argument in enumerate(arguments):
            positions += [position] * len(tuple(_references_in(argument)))
        return tuple(positions)

    def dim(self, position: int, name: str, rank: int, default: int = 0) -> int:
        """A dim argument, counted from the front."""
        dim = self.argument(position, name, default)
        if not isinstance(dim, int):
            raise TypeError(f"{self.operator.name}: dim is {dim!r}")
        return dim % rank if rank else 0
