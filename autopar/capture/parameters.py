"""The parameters and buffers of a module: their names, which are tied, and how a block calls them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from autopar.capture.graph import GraphParameter
from autopar.capture.trace import Slot, Trace

__all__ = ["ParameterNames", "list_parameters", "merge_tied"]


def list_parameters(module: nn.Module) -> tuple[GraphParameter, ...]:
    """Lists every parameter and buffer of a module under each of its names, parameters first."""
    persistent = module.state_dict(keep_vars=True).keys()
    first: dict[int, str] = {}
    listed = []
    parameters = ((name, held, False) for name, held in module.named_parameters(remove_duplicate=False))
    buffers = ((name, held, True) for name, held in module.named_buffers(remove_duplicate=False))
    for name, held, is_buffer in chain(parameters, buffers):
        canonical = first.setdefault(id(held), name)
        listed.append(
            _describe(name, held, is_buffer, name in persistent, None if canonical == name else canonical)
        )
    return tuple(listed)


def _describe(
    name: str, held: Tensor, is_buffer: bool, is_persistent: bool, alias_of: str | None
) -> GraphParameter:
    return GraphParameter(
        name=name,
        shape=tuple(held.shape),
        dtype=str(held.dtype).removeprefix("torch."),
        requires_grad=held.requires_grad,
        is_buffer=is_buffer,
        is_persistent=is_persistent,
        alias_of=alias_of,
    )


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """All names of each tensor, by the name that ``named_parameters()`` lists."""

    names: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, parameters: tuple[GraphParameter, ...]) -> ParameterNames:
        """Groups the names of tied parameters."""
        names: dict[str, tuple[str, ...]] = {}
        for each in parameters:
            canonical = each.alias_of or each.name
            names[canonical] = (*names.get(canonical, ()), each.name)
        return cls(names)

    def inside(self, canonical: str, block: str) -> str | None:
        """Returns the path of a parameter relative to a block, or None when it is not in the block."""
        if not block:
            return canonical
        prefix = f"{block}."
        return next((n.removeprefix(prefix) for n in self.names[canonical] if n.startswith(prefix)), None)


def merge_tied(trace: Trace, parameters: tuple[GraphParameter, ...]) -> None:
    """Gives tied parameters one slot, under the name that ``named_parameters()`` lists."""
    canonical = {each.name: each.alias_of or each.name for each in parameters}
    slots: dict[str, Slot] = {}
    same = {
        Slot(index): slots.setdefault(canonical[name], Slot(index))
        for index, name in trace.parameters.items()
    }
    trace.parameters = {slot.index: name for name, slot in slots.items()}
    trace.replace_slots(same)
