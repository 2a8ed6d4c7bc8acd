"""Runs a model with one operator in the place of each repeated block, except for the first of a kind.

The model's own forward runs as it is, whatever it does with its blocks and between them. A block that is alike
one that ran before, and is called alike, is not run again: ``autopar::block`` takes the tensors that the block
was given and returns tensors like those that the first one returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.calling import Form, Spec, take_apart
from autopar.capture.likeness import Alike, describe

__all__ = ["BLOCK", "FirstCall", "Outline"]


@torch.library.custom_op(
    "autopar::block",
    mutates_args=(),
    schema="(Tensor[] tensors, str block, int first_call, str results) -> Tensor[]",
)
def _block(tensors: list[Tensor], block: str, first_call: int, results: str) -> list[Tensor]:
    raise NotImplementedError("autopar::block stands for a block while a model is captured; it cannot run")


@_block.register_fake
def _fake_block(tensors: list[Tensor], block: str, first_call: int, results: str) -> list[Tensor]:
    return [_result(text, tensors[0].device) for text in results.split(";")]


BLOCK = torch.ops.autopar.block.default
"""``tensors`` are the distinct ones among the block's arguments, then perhaps a parameter, for its gradient."""


@dataclass(frozen=True, slots=True)
class FirstCall:
    """The call of a block that ran whole, and what it tells about later ones."""

    alike: Alike
    module: str
    """Path of the block."""
    number: int
    """How often this same block had been called before."""
    given: Form
    tensors: tuple[Tensor, ...]
    """The distinct tensors that it was given."""
    records_gradient: bool
    returned: Form | None
    """None when later calls must run too."""


class Outline:
    """The calls of one run of a model's forward."""

    def __init__(self, module: nn.Module, groups: tuple[Alike, ...]) -> None:
        self.blocks = {path: (module.get_submodule(path), alike) for alike in groups for path in alike.paths}
        self.first_calls: list[FirstCall] = []
        self.times: Counter[str] = Counter()
        self.stand_ins = 0
        """Calls for which an operator stands."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lets the blocks' forwards go through here; their signatures are what they were."""
        for path, (block, _) in self.blocks.items():
            vars(block)["forward"] = update_wrapper(partial(self._forward, path), block.forward)
        try:
            yield
        finally:
            for block, _ in self.blocks.values():
                vars(block).pop("forward", None)

    def _forward(self, path: str, /, *args: Any, **kwargs: Any) -> Any:
        block, alike = self.blocks[path]
        number = self.times[path]
        self.times[path] += 1
        parts = take_apart((args, kwargs))
        if parts is None or not parts[1] or torch.is_autocast_enabled():
            return type(block).forward(block, *args, **kwargs)
        given, tensors = parts
        for place, first in enumerate(self.first_calls):
            is_like_it = first.alike is alike and first.given == given
            if is_like_it and first.records_gradient == torch.is_grad_enabled():
                if first.returned is None:
                    return type(block).forward(block, *args, **kwargs)
                return self._stand_in(place, path, tensors)
        return self._run_first(path, number, (args, kwargs), given, tensors)

    def _run_first(
        self, path: str, number: int, arguments: Any, given: Form, tensors: tuple[Tensor, ...]
    ) -> Any:
        block, alike = self.blocks[path]
        before = describe(block)
        records_gradient = torch.is_grad_enabled()
        args, kwargs = arguments
        result = type(block).forward(block, *args, **kwargs)
        again = take_apart(arguments)
        is_untouched = (
            before is not None
            and describe(block) == before
            and again is not None
            and [id(each) for each in again[1]] == [id(each) for each in tensors]
            and again[0].leaves == given.leaves
        )
        returned = _returned(result, tensors, block) if is_untouched else None
        self.first_calls.append(FirstCall(alike, path, number, given, tensors, records_gradient, returned))
        return result

    def _stand_in(self, place: int, path: str, tensors: tuple[Tensor, ...]) -> Any:
        first, block = self.first_calls[place], self.blocks[path][0]
        assert first.returned is not None
        self.stand_ins += 1
        trained = next((each for each in block.parameters() if each.requires_grad), None)
        given = [*tensors] if trained is None else [*tensors, trained]
        results = torch.ops.autopar.block(given, path, place, ";".join(map(_text, first.returned.tensors)))
        return first.returned.with_tensors((*tensors, *results))


def _returned(result: Any, tensors: tuple[Tensor, ...], block: nn.Module) -> Form | None:
    """The form of what a block returned; None where it shares memory with what the block was given or holds."""
    parts = take_apart(result, tensors)
    if parts is None or not parts[1]:
        return None
    form, made = parts
    memory = [id(each.untyped_storage()) for each in (*made, *tensors, *block.parameters(), *block.buffers())]
    is_apart = len({*memory[: len(made)]}) == len(made) and not {*memory[: len(made)]} & {
        *memory[len(made) :]
    }
    return form if is_apart else None


def _text(spec: Spec) -> str:
    sizes = ",".join(map(str, spec.shape))
    return f"{str(spec.dtype).removeprefix('torch.')}/{sizes}/{','.join(map(str, spec.stride))}"


def _result(text: str, device: torch.device) -> Tensor:
    dtype, *numbers = text.split("/")
    shape, stride = ([int(each) for each in part.split(",") if each] for part in numbers)
    return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device)
