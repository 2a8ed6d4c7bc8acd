"""State dicts in the plain model's names, whole shapes and row order, from and to sharded modules.

After ``speak_plain_state``:

- ``module.load_state_dict(plain)`` takes the plain model's whole tensors, the same on every rank, as well as
  DTensors of this or another layout;
- ``module.state_dict()`` holds DTensors whose whole tensors are the plain model's, so that
  ``torch.distributed.checkpoint`` saves and loads them in shards, for any other plan too;
- ``full_state_dict(module)`` holds plain tensors.

All of these communicate: every rank must call them. Optimizer states go through ``full_optimizer_state``
and ``load_full_optimizer_state``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from autopar.runtime.homes import Homes, is_elsewhere
from autopar.runtime.identity import Holder, holders
from autopar.runtime.parameter import to_plain_order, to_stored_order
from autopar.torch_private import scale_in_place

__all__ = [
    "Orders",
    "clip_grad_norm",
    "full_gradients",
    "full_optimizer_state",
    "full_state_dict",
    "load_full_optimizer_state",
    "speak_plain_state",
    "whole_state",
]

Orders = Mapping[str, tuple[tuple[int, Tensor], ...]]
"""``orders_at_rest``: by name, the dims whose rows are stored in another order than the plain model's."""


def speak_plain_state(module: nn.Module, orders: Orders) -> None:
    """Teach the module's ``state_dict`` and ``load_state_dict`` the plain model's tensors.

    Call it last, when all parameters are what they will be at rest.
    """
    for holder in holders(module):
        order = orders.get(holder.names[0], ())
        for owner, attribute in holder.places:
            if isinstance(holder.parameter, DTensor):
                owner.register_load_state_dict_pre_hook(_Load(attribute, holder.parameter, order))
            if order:
                owner.register_state_dict_post_hook(_Save(attribute, order))


class _Load:
    """Before loading: turn what is given for one parameter into a DTensor stored as the parameter is."""

    def __init__(self, attribute: str, parameter: DTensor, order: tuple[tuple[int, Tensor], ...]) -> None:
        self.attribute, self.parameter, self.order = attribute, parameter, order

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        key = prefix + self.attribute
        given = state.get(key)
        if not isinstance(given, Tensor) or given.shape != self.parameter.shape:
            return  # missing or wrong: load_state_dict reports it
        if is_elsewhere(self.parameter):
            state[key] = self.parameter
            return
        if isinstance(given, DTensor) and not self.order and given.device_mesh == self.parameter.device_mesh:
            return
        whole = given.full_tensor() if isinstance(given, DTensor) else given
        state[key] = _sharded_like(self.parameter, to_stored_order(whole, self.order))


class _Save:
    """After ``state_dict``: put one parameter's rows in the plain model's order."""

    def __init__(self, attribute: str, order: tuple[tuple[int, Tensor], ...]) -> None:
        self.attribute, self.order = attribute, order

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        key = prefix + self.attribute
        if isinstance(state.get(key), DTensor) and not is_elsewhere(state[key]):
            state[key] = _sharded_like(state[key], to_plain_order(state[key].full_tensor(), self.order))


@torch.no_grad()
def _sharded_like(parameter: DTensor, whole: Tensor) -> DTensor:
    """The rank's shard of a whole tensor that every rank has."""
    whole = whole.detach().to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def full_state_dict(module: nn.Module, homes: Homes | None = None) -> dict[str, Any]:
    """The module's state as the plain model has it: whole tensors, on every rank, copies."""
    state = module.state_dict()
    whole = whole_state(state, homes)
    return {
        n: value if isinstance(state[n], DTensor) or not isinstance(value, Tensor) else value.clone()
        for n, value in whole.items()
    }


def whole_state(state: Mapping[str, Any], homes: Homes | None = None) -> dict[str, Any]:
    """A state dict with whole tensors, on every rank. ``homes`` says where a pipeline's tensors are."""
    return {
        name: _shared(name, value, homes) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def _full(value: Tensor) -> Tensor:
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _shared(name: str, value: Tensor, homes: Homes | None) -> Tensor:
    """The whole tensor, of the pipeline rank that holds it."""
    if homes is None or name not in homes.of:
        return _full(value)
    return homes.shared(name, None if is_elsewhere(value) else _full(value), value)


def full_gradients(module: nn.Module, orders: Orders, homes: Homes | None = None) -> dict[str, Tensor]:
    """Every gradient as the plain model has it, by parameter name; parameters without one are left out."""
    found = list(holders(module))
    has_gradient = [holder.parameter.grad is not None for holder in found]
    if homes is not None:
        has_gradient = homes.any(has_gradient)
    return {
        holder.names[0]: to_plain_order(_full_gradient(holder, homes), orders.get(holder.names[0], ()))
        for holder, has in zip(found, has_gradient, strict=True)
        if has
    }


def _full_gradient(holder: Holder, homes: Homes | None) -> Tensor:
    gradient = holder.parameter.grad
    if homes is None:
        assert gradient is not None
        return _full(gradient)
    return homes.shared(holder.names[0], None if gradient is None else _full(gradient), holder.parameter)


def full_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, orders: Orders, homes: Homes | None = None
) -> dict[str, Any]:
    """The optimizer's state by parameter name, whole, in the plain model's row order, on every rank."""
    options = StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(module, optimizer, options=options)
    if homes is not None:
        state = {**state, "state": homes.merged(state["state"])}
    return _reordered(state, module, orders, to_plain_order)


def load_full_optimizer_state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    orders: Orders,
    homes: Homes | None = None,
) -> None:
    """Load what ``full_optimizer_state`` returned, under this or another plan."""
    stored = _reordered(state, module, orders, to_stored_order)
    if homes is not None:
        _load_held(module, optimizer, stored)
        return
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(module, optimizer, stored, options=options)


def _load_held(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of the parameters that this rank of a pipeline holds (torch's own loader wants them all)."""
    names = {id(holder.parameter): holder.names[0] for holder in holders(module)}
    options = {name: group for group in state["param_groups"] for name in group["params"]}
    for group in optimizer.param_groups:
        given = options.get(names[id(group["params"][0])], {}) if group["params"] else {}
        group.update({key: value for key, value in given.items() if key != "params"})
        for parameter in group["params"]:
            entries = state["state"].get(names[id(parameter)])
            if entries is not None and not is_elsewhere(parameter):
                optimizer.state[parameter] = {
                    key: _like(parameter, key, value) for key, value in entries.items()
                }


def _like(parameter: Tensor, key: str, value: Any) -> Any:
    """An entry of an optimizer's state, laid out as the parameter where it has its shape; steps are numbers."""
    if key == "step" or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return copy.deepcopy(value)
    return (
        _sharded_like(parameter, value)
        if isinstance(parameter, DTensor)
        else value.to(parameter.device, copy=True)
    )


def _reordered(state: Mapping[str, Any], module: nn.Module, orders: Orders, reorder: Any) -> dict[str, Any]:
    """The state with the rows of every tensor that is shaped like its parameter reordered."""
    shapes = {holder.names[0]: holder.parameter.shape for holder in holders(module)}

    def turn(name: str, value: Any) -> Any:
        is_shaped = isinstance(value, Tensor) and name in orders and value.shape == shapes[name]
        return reorder(value, orders[name]) if is_shaped else value

    moments = {
        name: {key: turn(name, value) for key, value in entries.items()}
        for name, entries in state["state"].items()
    }
    return {**state, "state": moments}


def clip_grad_norm(
    module: nn.Module, max_norm: float, norm_type: float = 2.0, homes: Homes | None = None
) -> Tensor:
    """Clip the norm of all gradients together, tied weights counted once; return what it was, on every rank.

    Without a pipeline ``torch.nn.utils.clip_grad_norm_`` on ``module.parameters()`` does the same, and returns a
    DTensor. With one it sees the stages of one rank only.
    """
    if homes is None:
        norm = nn.utils.clip_grad_norm_(module.parameters(), max_norm, norm_type)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    found = [holder for holder in holders(module) if holder.parameter.grad is not None]
    mine = [holder.parameter.grad for holder in found if homes.is_first(holder.names[0])]
    norm = homes.total_norm(_norm(mine, norm_type, homes.device), norm_type)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_ does it
    gradients = [holder.parameter.grad for holder in found]
    scale_in_place(
        [g.to_local() if isinstance(g, DTensor) else g for g in gradients if g is not None], factor
    )
    return norm


def _norm(gradients: list[Any], norm_type: float, device: torch.device) -> Tensor:
    """The norm of whole gradients together, of which each rank has its shards; zero for none."""
    norm = nn.utils.get_total_norm(gradients, norm_type) if gradients else torch.zeros((), device=device)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
