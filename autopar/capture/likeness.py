"""Which repeated blocks are alike: nothing that their forwards can see differs, but numbers to be left unread.

Two blocks are alike when their classes, parameters and buffers (shapes, strides, dtypes, which are trained,
which are tied), modes and all other attributes are equal, down to the last part. An attribute that counts the
blocks, such as ``layer_idx``, may differ: whoever relies on the likeness must make sure that it is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.segments import repeated_blocks

__all__ = ["Alike", "Description", "alike_blocks", "describe", "unread"]

FEWEST = 4
"""Blocks of a kind for which it pays to run one alone."""
MOST_PARTS = 20_000
"""An attribute that leads to more objects than this is not compared."""
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size, torch.layout)
SHARED = (FunctionType, BuiltinFunctionType, ModuleType, type, torch.Generator)
"""Objects that are equal only to themselves."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alike:
    """Blocks that compute the same from the same inputs."""

    paths: tuple[str, ...]
    counters: tuple[str, ...]
    """Attributes in which they differ, relative to the block: ``attention.layer_idx``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """Everything that a block's forward can see."""

    fixed: Any
    """Nested tuples of plain data; equal for equal blocks."""
    numbers: dict[str, int]
    """Whole numbers held by the block and the modules in it, by dotted name."""


class CounterReadError(Exception):
    """A block's forward looks at a number by which it differs from other blocks."""


class IncomparableError(Exception):
    """Something about which only running it could tell."""


def alike_blocks(module: nn.Module) -> tuple[Alike, ...]:
    """Returns the groups of at least ``FEWEST`` repeated blocks that are alike."""
    described: dict[str, Description] = {}
    memo: dict[int, Any] = {}
    shared = _shared_modules(module)
    for path in sorted(repeated_blocks(module)):
        block = module.get_submodule(path)
        is_apart = "forward" not in vars(block) and not any(id(each) in shared for each in block.modules())
        found = describe(block, memo) if is_apart else None
        if found is not None:
            described[path] = found
    groups: dict[Any, list[str]] = {}
    for path, found in described.items():
        groups.setdefault((path.rpartition(".")[0], found.fixed, tuple(found.numbers)), []).append(path)
    return tuple(alike for paths in groups.values() for alike in _by_numbers(paths, described))


def _shared_modules(module: nn.Module) -> set[int]:
    """Modules that have several paths: which of them torch.export names is its own business."""
    seen: set[int] = set()
    return {
        id(each)
        for _, each in module.named_modules(remove_duplicate=False)
        if id(each) in seen or seen.add(id(each))  # type: ignore[func-returns-value]
    }


def _by_numbers(paths: list[str], described: dict[str, Description]) -> Iterator[Alike]:
    """Tells numbers that count the blocks from those by which blocks differ."""
    places = {path: int(last) for path in paths if (last := path.rpartition(".")[2]).isdigit()}
    names = described[paths[0]].numbers
    differing = [name for name in names if len({described[path].numbers[name] for path in paths}) > 1]
    counters = tuple(
        name
        for name in differing
        if len({described[path].numbers[name] - places.get(path, 0) for path in paths}) == 1
    )
    groups: dict[tuple[int, ...], list[str]] = {}
    for path in paths:
        key = tuple(described[path].numbers[name] for name in differing if name not in counters)
        groups.setdefault(key, []).append(path)
    return (Alike(tuple(group), counters) for group in groups.values() if len(group) >= FEWEST)


def describe(block: nn.Module, memo: dict[int, Any] | None = None) -> Description | None:
    """Returns what a block's forward can see; None where it holds something that cannot be compared.

    The block's own hooks do not count, as they run outside of its forward. ``memo`` keeps the descriptions of
    objects that several blocks share; give the same one only as long as nothing runs in between.
    """
    describer = _Describer(block, {} if memo is None else memo)
    try:
        fixed = describer.module(block, "")
    except IncomparableError:
        return None
    return Description(fixed, describer.numbers)


class _Describer:
    def __init__(self, block: nn.Module, memo: dict[int, Any]) -> None:
        self.places = {id(each): place for place, each in enumerate(block.modules())}
        self.tensors: dict[int, int] = {}
        self.numbers: dict[str, int] = {}
        self.memo = memo
        self.left = MOST_PARTS

    def module(self, module: nn.Module, path: str) -> Any:
        """Describes a module with everything in it."""
        parts = []
        for name, held in vars(module).items():
            if name == "_modules":
                inner = ((n, None if m is None else self.module(m, f"{path}{n}.")) for n, m in held.items())
                parts.append((name, tuple(inner)))
            elif name in ("_parameters", "_buffers"):
                parts.append((name, tuple((n, self.tensor(tensor)) for n, tensor in held.items())))
            elif name.endswith(HOOKS) or name == "forward":
                if path and held:
                    raise IncomparableError
            elif type(held) is int:
                self.numbers[path + name] = held
            else:
                parts.append((name, self.value(held)))
        return type(module), tuple(parts)

    def tensor(self, tensor: Tensor | None) -> Any:
        """Describes a parameter or a buffer, and which earlier one it is tied to."""
        if tensor is None:
            return None
        tie = self.tensors.setdefault(id(tensor), len(self.tensors))
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        return tie, type(tensor), shape, stride, tensor.dtype, str(tensor.device), tensor.requires_grad

    def value(self, value: Any) -> Any:
        """Describes an attribute's value by its contents."""
        self.left -= 1
        if self.left < 0:
            raise IncomparableError
        if value is None or isinstance(value, PLAIN):
            return type(value), repr(value)
        if isinstance(value, SHARED):
            return type(value), id(value)
        if isinstance(value, list | tuple):
            return type(value), tuple(self.value(each) for each in value)
        if isinstance(value, set | frozenset):
            return type(value), frozenset(self.value(each) for each in value)
        if isinstance(value, dict):
            return type(value), tuple((self.value(key), self.value(held)) for key, held in value.items())
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return nn.Module, self._place(value)
        if isinstance(value, MethodType):
            return MethodType, id(value.__func__), self.value(value.__self__)
        if isinstance(value, partial):
            return partial, self.value(value.func), self.value(value.args), self.value(value.keywords)
        if isinstance(value, Tensor) or not (dataclasses.is_dataclass(value) or hasattr(value, "__dict__")):
            raise IncomparableError
        if id(value) not in self.memo:
            self.memo[id(value)] = (type(value), "around itself")
            self.memo[id(value)] = (type(value), self._contents(value))
        return self.memo[id(value)]

    def _contents(self, value: Any) -> Any:
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        held = {each.name: getattr(value, each.name) for each in fields}
        return self.value({**held, **getattr(value, "__dict__", {})})

    def _place(self, module: nn.Module) -> int:
        if id(module) not in self.places:
            raise IncomparableError
        return self.places[id(module)]


class _Unread:
    """Stands for a number that must not be read: everything but ``is`` raises."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance() asks for it
        raise CounterReadError


def _refuse(*_arguments: Any) -> Any:
    raise CounterReadError


OPERATIONS = (
    "abs add and bool bytes call ceil complex contains delitem divmod enter eq exit float floor floordiv format "
    "ge getattr getitem gt hash index int invert iter le len lshift lt matmul mod mul ne neg next or pos pow "
    "radd rand rdivmod reduce reduce_ex repr rfloordiv rlshift rmatmul rmod rmul ror round rpow rrshift rshift "
    "rsub rtruediv rxor setitem str sub truediv trunc xor"
)
for _name in OPERATIONS.split():
    setattr(_Unread, f"__{_name}__", _refuse)


@contextmanager
def unread(block: nn.Module, counters: tuple[str, ...]) -> Iterator[None]:
    """Makes a block's forward fail if it reads one of these attributes."""
    restore: list[Callable[[], None]] = []
    for counter in counters:
        path, _, name = counter.rpartition(".")
        held = vars(block.get_submodule(path))
        restore.append(partial(held.__setitem__, name, held[name]))
        held[name] = _Unread()
    try:
        yield
    finally:
        for each in restore:
            each()
