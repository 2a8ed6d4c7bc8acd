"""Every private torch API that autopar uses, each behind one small function.

Each function names the module it reaches into, and the torch versions on which it was read or tried, so
that a torch release that moves something breaks one file. Append; keep each wrapper free of policy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree
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


def is_operator(target: object) -> bool:
    """Return whether the target of a traced call is one overload of a torch operator (``torch._ops``)."""
    return isinstance(target, torch._ops.OpOverload)


def operator_arguments(operator: Any) -> tuple[tuple[str, bool, Any, bool], ...]:
    """Return ``(name, is keyword only, default, is written to)`` of each argument (``OpOverload._schema``)."""
    return tuple(
        (a.name, a.kwarg_only, a.default_value, bool(a.alias_info and a.alias_info.is_write))
        for a in operator._schema.arguments
    )


def flatten_with_paths(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return the leaves of a tree of tuples, lists and dicts with their dotted paths, and how to rebuild it.

    ``torch.utils._pytree``, whose public twin ``torch.utils.pytree`` arrived after torch 2.11.
    """
    leaves, structure = torch.utils._pytree.tree_flatten_with_path(tree)
    return [(".".join(str(_key_of(entry)) for entry in path), leaf) for path, leaf in leaves], structure


def _key_of(entry: Any) -> Any:
    return next(getattr(entry, field) for field in ("idx", "key", "name") if hasattr(entry, field))


def rebuild(leaves: list[Any], structure: Any) -> Any:
    """Return the tree that ``flatten_with_paths`` took apart, with other leaves."""
    return torch.utils._pytree.tree_unflatten(leaves, structure)


def write_structure(structure: Any) -> str:
    """Return a tree's structure as text; raises NotImplementedError for a class that torch cannot write."""
    return torch.utils._pytree.treespec_dumps(structure)
