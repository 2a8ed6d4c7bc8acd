"""Generated forwards on the user's own modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MethodType

import torch
from torch import nn

from autopar.errors import ModelError
from autopar.runtime.axis import Axis
from autopar.runtime.recompute import Forward, recomputed

__all__ = ["bind", "can_split"]

ONE_BACKWARD = "_autopar_one_backward"
"""Attribute of forwards whose backward runs as one: compiled or recomputing ones."""


def bind(
    module: nn.Module,
    forwards: Mapping[str, Forward],
    axes: Mapping[str, Axis],
    *,
    compile_forwards: bool = False,
    head: Forward | None = None,
    recompute: Mapping[str, str] | None = None,
) -> None:
    """Make submodules run generated forwards, and give them their ``axes``.

    ``forwards`` maps the path of a submodule (empty for the root) to a function whose first argument is
    ``self``. It is bound as an attribute of the instance: the module stays an object of its class, with its
    parameters, hooks and children. With ``compile_forwards`` each distinct function but the root's is
    compiled, once for all modules that run it at one level of recomputation; hooks, FSDP2's among them, stay
    outside. ``recompute`` says what a submodule recomputes in backward, by path: ``selective`` or ``full`` (see
    ``autopar.runtime.recompute``); nothing where the path is missing. ``head``, what the root does after the last
    block, becomes ``run_head`` of the root, compiled as the blocks are.

    Raises ModelError when a module has an attribute ``axes`` or ``run_head`` of its own, ValueError for another
    level.
    """
    levels = recompute or {}

    @cache
    def made(forward: Forward, level: str | None, is_compiled: bool) -> Forward:
        function = forward if level is None else recomputed(forward, level)
        function = torch.compile(function) if is_compiled else function
        if function is not forward:
            setattr(function, ONE_BACKWARD, True)
        return function

    for path, forward in forwards.items():
        target = module.get_submodule(path)
        _give_axes(target, path, axes)
        is_compiled = compile_forwards and path != ""
        target.forward = MethodType(made(forward, levels.get(path), is_compiled), target)
    if head is not None:
        _give_head(module, made(head, None, compile_forwards))


def can_split(module: nn.Module) -> bool:
    """Whether gradients of inputs and of weights can be computed apart: no forward is compiled, none recomputes."""
    forwards = [getattr(part, name, None) for part in module.modules() for name in ("forward", "run_head")]
    return not any(getattr(forward, ONE_BACKWARD, False) for forward in forwards)


def _give_head(root: nn.Module, head: Forward) -> None:
    before = getattr(root, "run_head", None)
    if before is not None and not isinstance(before, MethodType):
        raise ModelError(f"{type(root).__name__} has an attribute 'run_head', which programs need: rename it")
    setattr(root, "run_head", MethodType(head, root))  # noqa: B010 (nn.Module types its attributes)


def _give_axes(target: nn.Module, path: str, axes: Mapping[str, Axis]) -> None:
    before = getattr(target, "axes", None)
    is_ours = isinstance(before, dict) and all(isinstance(axis, Axis) for axis in before.values())
    if before is not None and not is_ours:
        raise ModelError(
            f"module '{path}' ({type(target).__name__}) has an attribute 'axes', which generated "
            "forwards need: rename it"
        )
    setattr(target, "axes", dict(axes))  # noqa: B010 (nn.Module types its attributes)
