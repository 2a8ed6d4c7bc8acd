"""Lets a module on the meta device be exported as if it were on a cpu, without memory.

On meta a forward forgets the values that it writes down itself (``torch.tensor([…])``, index lists), and
torch takes other paths than on a real device. Fake tensors say that they are on the cpu and hold nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from autopar.capture.inputs import Example, with_tensors
from autopar.torch_private import fake_mode

__all__ = ["stand_ins"]


@contextmanager
def stand_ins(module: nn.Module, example: Example) -> Iterator[Example]:
    """Puts fake cpu tensors in the place of a meta module's parameters and buffers; takes them out again.

    Yields the example with fake inputs.
    """
    held = [(each, name, tensor) for each in module.modules() for name, tensor in _own_tensors(each)]
    with fake_mode():
        fakes = {id(tensor): _fake(tensor) for _, _, tensor in held}
        inputs = with_tensors(example, [_fake(tensor) for _, tensor in example.tensors])
    try:
        for each, name, tensor in held:
            setattr(each, name, fakes[id(tensor)])
        with _default_cpu():
            yield inputs
    finally:
        for each, name, tensor in held:
            setattr(each, name, tensor)


def _default_cpu() -> AbstractContextManager[object]:
    """Makes the cpu the device of new tensors; where it is that already, torch is not slowed by a mode."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _fake(tensor: Tensor) -> Tensor:
    """A tensor of the same kind on the cpu; called under the fake mode."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)
