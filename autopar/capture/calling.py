"""How a block is called and what it returns, with the tensors taken out: what two calls must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopar.torch_private import flatten_with_paths, rebuild

__all__ = ["Form", "Spec", "take_apart"]

PLAIN = (bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor as a forward sees it before it computes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """Describes a tensor."""
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        return cls(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad)


@dataclass(frozen=True, slots=True)
class Form:
    """A tree of tensors and plain data without the tensors."""

    paths: tuple[str, ...]
    leaves: tuple[tuple[str, Any], ...]
    """``("int", 3)`` for plain data, ``("tensor", 0)`` for the first distinct tensor, by leaf."""
    structure: Any
    tensors: tuple[Spec, ...]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Returns the tree with tensors in it."""
        leaves = [tensors[held] if kind == "tensor" else held for kind, held in self.leaves]
        return rebuild(leaves, self.structure)


def take_apart(tree: Any, known: Sequence[Tensor] = ()) -> tuple[Form, tuple[Tensor, ...]] | None:
    """Returns the form of a tree and its distinct tensors, numbered after the ``known`` ones.

    None where the tree holds anything but tensors and plain data.
    """
    found, structure = flatten_with_paths(tree)
    places = {id(tensor): place for place, tensor in enumerate(known)}
    tensors: list[Tensor] = []
    leaves: list[tuple[str, Any]] = []
    for _, leaf in found:
        if isinstance(leaf, Tensor):
            if id(leaf) not in places:
                places[id(leaf)] = len(places)
                tensors.append(leaf)
            leaves.append(("tensor", places[id(leaf)]))
        elif leaf is None or type(leaf) in PLAIN:
            leaves.append((type(leaf).__name__, leaf))
        else:
            return None
    specs = tuple(Spec.of(tensor) for tensor in tensors)
    return Form(tuple(path for path, _ in found), tuple(leaves), structure, specs), tuple(tensors)
