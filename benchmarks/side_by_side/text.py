"""Real text without a download: the source of Python's own standard library, by bytes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DESCRIPTION", "text_batch"]

DESCRIPTION = (
    "the top-level modules (*.py) of Python's standard library in alphabetical order, a byte a token; "
    "each step reads sequences from random places (seed: the step's number)"
)


def text_batch(step: int, batch: int, seq: int) -> tuple[Tensor, Tensor]:
    """Tokens and the tokens that follow them, int64 ``[batch, seq]``: the same on every machine with one Python."""
    text = _text()
    places = torch.randint(len(text) - seq, (batch, 1), generator=torch.Generator().manual_seed(step))
    window = text[places + torch.arange(seq + 1)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


@cache
def _text() -> Tensor:
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
