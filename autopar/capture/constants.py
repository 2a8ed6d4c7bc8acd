"""Keeps the values of tensors that a forward writes down itself, also while it is captured on meta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["KeepConstants"]


class KeepConstants(TorchFunctionMode):
    """Makes ``torch.tensor([…])`` on a cpu and moves it to ``device``, so that the trace knows its values."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        data = args[0] if args else kwargs.get("data")
        if func not in (torch.tensor, torch.as_tensor) or isinstance(data, Tensor):
            return func(*args, **kwargs)
        kwargs["device"] = "cpu"
        return func(*args, **kwargs).to(self.device)
