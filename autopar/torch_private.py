"""Every private torch API that autopar uses, each behind one small function.

Each function names the module it reaches into, and the torch versions on which it was read or tried, so
that a torch release that moves something breaks one file. Append; keep each wrapper free of policy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_reduce_now(tensor: Tensor, operation: str, group_name: str) -> Tensor:
    """Return ``tensor`` reduced over a group; ``operation`` is ``sum`` or ``max``.

    ``torch.ops._c10d_functional``: the functional collectives that Dynamo, Inductor and ``CommDebugMode``
    know. Waits at once (on CUDA that orders streams and does not block the host). Read on 2.11 and 2.13.
    """
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.all_reduce(tensor, operation, group_name))


def all_gather_now(tensor: Tensor, size: int, group_name: str) -> Tensor:
    """Return the contiguous tensors of ``size`` ranks, concatenated along dim 0."""
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.all_gather_into_tensor(tensor, size, group_name))


def reduce_scatter_now(tensor: Tensor, size: int, group_name: str) -> Tensor:
    """Return this rank's part, of ``size`` parts along dim 0, of the sum of the ranks' contiguous tensors."""
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.reduce_scatter_tensor(tensor, "sum", size, group_name))


def all_to_all_now(tensor: Tensor, size: int, group_name: str) -> Tensor:
    """Send part k of ``size`` equal parts along dim 0 to rank k; return the parts received, in rank order."""
    functional = torch.ops._c10d_functional
    rows = [tensor.shape[0] // size] * size
    return functional.wait_tensor(functional.all_to_all_single(tensor, rows, rows, group_name))
