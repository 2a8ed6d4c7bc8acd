"""Parameters that change what they are and stay the objects that optimizers hold.

An optimizer keeps parameter objects. Sharding replaces what a parameter is: a plain tensor becomes a
DTensor. ``keep_identity``, called before the optimizer is made, readies the parameters for that; every
later change goes through ``replace``, which exchanges the contents of two objects
(``torch.utils.swap_tensors``) where it can, so that the module, its optimizers and every list of parameters
go on holding the same objects.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autopar.torch_private import PendingParameter, can_swap, reconnect_hooks

__all__ = ["Holder", "holders", "keep_identity", "replace"]


@dataclass(frozen=True)
class Holder:
    """One parameter object and all places that hold it: several for tied weights."""

    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]
    """(module, attribute) pairs."""
    names: tuple[str, ...]
    """Full names in the same order; the first is the one ``named_parameters()`` lists."""


def holders(module: nn.Module) -> Iterator[Holder]:
    """Every distinct parameter of the module, in the order of ``named_parameters()``."""
    found: dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]], list[str]]] = {}
    for path, owner in module.named_modules():
        for attribute, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            _, places, names = found.setdefault(id(parameter), (parameter, [], []))
            places.append((owner, attribute))
            names.append(f"{path}.{attribute}" if path else attribute)
    for parameter, places, names in found.values():
        yield Holder(parameter, tuple(places), tuple(names))


def keep_identity(module: nn.Module) -> None:
    """Let the module's parameters become DTensors later without becoming other objects.

    Replaces each parameter by an equal one on the same memory, so call it before anybody keeps the
    parameters. Parameters that are DTensors already, or of a class of their own, stay as they are.
    """
    for holder in list(holders(module)):
        if type(holder.parameter) is nn.Parameter:
            _set(holder, PendingParameter(holder.parameter, holder.parameter.requires_grad))


def replace(holder: Holder, new: nn.Parameter) -> nn.Parameter:
    """Put what ``new`` is in every place of the holder; return the object that is there now.

    It is the object that was there before, unless its class cannot become the new one's.
    """
    old = holder.parameter
    if new is old:
        return old
    if isinstance(old, DTensor | PendingParameter):
        if can_swap(old, new):
            torch.utils.swap_tensors(old, new)
            reconnect_hooks(old)
            new = old
        else:
            warnings.warn(
                f"parameter {holder.names[0]} could not stay the same object, as something refers to it weakly "
                "(recurrent layers do): make the optimizer after the first call, or pass inputs= to parallelize",
                stacklevel=2,
            )
    _set(holder, new)
    return new


def _set(holder: Holder, parameter: Tensor) -> None:
    for owner, attribute in holder.places:
        setattr(owner, attribute, parameter)
