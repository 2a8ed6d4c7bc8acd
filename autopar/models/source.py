"""What every way of naming a model comes to: something that builds a module and its inputs."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["BuiltModel", "ModelSource", "closest", "random_integers", "seeded"]

DEFAULT_GLOBAL_BATCH = 8
"""Sequences (or samples) of a step when nobody says."""


@dataclass(frozen=True)
class BuiltModel:
    """A module that returns its scalar loss, and inputs of one whole global batch."""

    module: nn.Module
    inputs: tuple[Any, ...] | dict[str, Any]

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional inputs."""
        return self.inputs if isinstance(self.inputs, tuple) else ()

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword inputs."""
        return self.inputs if isinstance(self.inputs, dict) else {}

    @property
    def global_batch(self) -> int:
        """The size of dim 0 of the first tensor."""
        return self._first.shape[0] if self._first.dim() else 1

    @property
    def tokens(self) -> int:
        """Tokens of the batch, for integer ``[batch, sequence]`` inputs; otherwise samples."""
        is_text = self._first.dim() == 2 and not self._first.dtype.is_floating_point
        return self._first.numel() if is_text else self.global_batch

    @property
    def lengths(self) -> set[int]:
        """The sizes of dim 1 of all tensors."""
        tensors = (each for each in (*self.args, *self.kwargs.values()) if isinstance(each, Tensor))
        return {tensor.shape[1] for tensor in tensors if tensor.dim() > 1}

    @property
    def _first(self) -> Tensor:
        return next(each for each in (*self.args, *self.kwargs.values()) if isinstance(each, Tensor))


class ModelSource(ABC):
    """A model as the user named it."""

    text: str

    @abstractmethod
    def build(
        self,
        *,
        global_batch: int | None = None,
        seq_len: int | None = None,
        device: str = "meta",
        seed: int = 0,
    ) -> BuiltModel:
        """Returns the module and inputs on ``device``; equal seeds give equal parameters and inputs.

        ``seq_len`` means nothing to models without a sequence. Raises ModelError.
        """


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Makes new tensors on ``device`` from a seed; the global random state is as before afterwards."""
    devices = range(torch.cuda.device_count()) if device.startswith("cuda") else ()
    values = _WithoutValues() if device == "meta" else nullcontext()
    with torch.random.fork_rng(devices=devices), torch.device(device), values:
        torch.manual_seed(seed)
        yield


class _WithoutValues(TorchFunctionMode):
    """Leaves out ``torch.nn.init``, whose numbers a tensor on meta forgets: two thirds of building a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        is_forgotten = isinstance(tensor, Tensor) and tensor.is_meta
        if is_forgotten and getattr(func, "__module__", "") == "torch.nn.init":
            return tensor
        return func(*args, **kwargs)


def random_integers(bound: int, *shape: int) -> Tensor:
    """Returns int64 values from 0 to ``bound`` − 1."""
    return torch.randint(bound, shape)


def closest(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'gpt2'?`` where a known name is close, otherwise nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
