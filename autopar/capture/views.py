"""Views: what they show of the tensor they look into, and how a write through one changes that tensor."""

from __future__ import annotations

from dataclasses import replace

import torch

from autopar.capture.trace import Call, Slot

__all__ = ["write_through"]

aten = torch.ops.aten

RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"}
SAME = {"alias", "lift_fresh", "lift_fresh_copy", "contiguous", "to", "dropout"}
SCATTERS = {
    "select": aten.select_scatter.default,
    "slice": aten.slice_scatter.default,
    "diagonal": aten.diagonal_scatter.default,
}


def write_through(view: Call, before: Slot, shape: tuple[int, ...], written: Slot) -> Call | Slot | None:
    """Returns the call that makes the viewed tensor from its old value and the view's new one.

    ``before``, of ``shape``, is the tensor that ``view`` looks into; ``written`` is what the view shows now.
    A slot stands for "that is it already", None for a view that cannot be written through.
    """
    if view.name in SCATTERS:
        return replace(view, target=SCATTERS[view.name], arguments=(before, written, *view.arguments[1:]))
    if view.name in RESHAPES:
        return replace(view, target=aten.reshape.default, arguments=(written, shape), keywords={})
    if view.name in ("transpose", "t", "swapaxes"):
        return replace(view, arguments=(written, *view.arguments[1:]))
    if view.name == "permute":
        order = [dim % len(shape) for dim in view.arguments[1]]
        inverse = tuple(order.index(dim) for dim in range(len(order)))
        return replace(view, arguments=(written, inverse))
    return written if view.name in SAME else None
