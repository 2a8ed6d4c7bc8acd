"""Every private torch API that autopar uses, each behind one small function.

Each function names the module it reaches into, and the torch versions on which it was read or tried, so
that a torch release that moves something breaks one file. Append; keep each wrapper free of policy.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch._subclasses.fake_tensor
import torch.distributed.pipelining._backward as pipelining_backward
import torch.utils._pytree
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining.stage import _PipelineStageBase
from torch.distributed.tensor import DTensor


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
    """Return ``(name, is keyword only, default, is written to)`` of each argument, by ``_schema``."""
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


def fake_mode() -> Any:
    """Return a context in which new tensors know their device and shape but hold no memory.

    ``torch._subclasses.fake_tensor.FakeTensorMode``; ``torch.export`` takes modules of such tensors.
    Tried on 2.13.
    """
    return torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor holds no memory (``torch._subclasses.fake_tensor.FakeTensor``)."""
    return isinstance(tensor, torch._subclasses.fake_tensor.FakeTensor)


def fake_like(tensor: Tensor) -> Tensor:
    """Return a new leaf tensor of the shape, strides and kind of a fake one, under the same ``fake_mode``.

    ``torch.export`` goes on with the mode of the tensors that it is given. Tried on 2.11 and 2.13.
    """
    assert isinstance(tensor, torch._subclasses.fake_tensor.FakeTensor)
    with tensor.fake_mode:
        fresh = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return fresh.requires_grad_(tensor.requires_grad)


class PendingParameter(torch.Tensor):
    """A plain parameter that can become a DTensor and stay the same object.

    ``torch.utils.swap_tensors`` exchanges what two tensor objects are, but wants the same ``__slots__``, and
    a DTensor has two of its own (read on 2.11 and 2.13). A parameter of this class has them too, unused, and
    is in every other way an ordinary dense ``nn.Parameter``: an optimizer that holds it keeps holding it.
    """

    __slots__ = tuple(DTensor.__slots__)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, data: Tensor, requires_grad: bool) -> PendingParameter:
        parameter = torch.Tensor._make_subclass(cls, data.detach(), requires_grad)
        parameter._is_param = True  # what isinstance(…, nn.Parameter) asks (torch.nn.parameter)
        return parameter

    def __deepcopy__(self, memo: dict[int, Any]) -> PendingParameter:
        if id(self) not in memo:
            copy = PendingParameter(
                self.detach().clone(memory_format=torch.preserve_format), self.requires_grad
            )
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:  # type: ignore[override]
        return torch.nn.Parameter(self.detach(), self.requires_grad).__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Parameter containing:\n{self.detach()!r}"


def can_swap(left: Tensor, right: Tensor) -> bool:
    """Return whether ``torch.utils.swap_tensors`` takes the two: same slots, and nobody refers to them weakly."""
    if weakref.getweakrefcount(left) or weakref.getweakrefcount(right):
        return False
    swappable = (DTensor, PendingParameter)
    return type(left) is type(right) or (isinstance(left, swappable) and isinstance(right, swappable))


def reconnect_hooks(parameter: Tensor) -> None:
    """Let hooks of ``register_post_accumulate_grad_hook`` fire again after a swap, which leaves them unconnected.

    Setting ``Tensor._post_accumulate_grad_hooks`` connects; the dict stays the same, for handles remove from it.
    """
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
    if hooks:
        parameter._post_accumulate_grad_hooks = hooks


def is_in_backward() -> bool:
    """Return whether autograd is running a backward pass in this thread (``torch._C._current_graph_task_id``)."""
    return torch._C._current_graph_task_id() != -1


def adopt_parameters(module: FSDPModule) -> None:
    """Make FSDP2 use the parameter objects that now sit in its modules, as it does before its first forward.

    ``FSDPParam.reset_sharded_param``; the list of groups has other names on 2.11 and 2.13.
    """
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
    for group in groups:
        for parameter in group.fsdp_params:
            parameter.reset_sharded_param()


def flatten_axes(mesh: DeviceMesh, names: tuple[str, ...]) -> DeviceMesh:
    """Return a mesh of one axis made of several (``DeviceMesh._flatten``, on 2.11 and 2.13)."""
    return mesh[names[0]] if len(names) == 1 else mesh[names]._flatten("_".join(names))


def join_axes(meshes: list[DeviceMesh]) -> DeviceMesh:
    """Return a mesh of the axes of several, all cut from one root (``DeviceMesh._concatenate``)."""
    return DeviceMesh._concatenate(meshes)


def add_axis_of_one(mesh: DeviceMesh, name: str) -> DeviceMesh:
    """Return a one-axis mesh with an inner axis of one rank added (``DeviceMesh._unflatten``)."""
    assert mesh.mesh_dim_names is not None
    return mesh._unflatten(0, (mesh.size(), 1), (mesh.mesh_dim_names[0], name))


def read_structure(text: str) -> Any:
    """Return the structure that ``write_structure`` wrote; for ``rebuild``."""
    return torch.utils._pytree.treespec_loads(text)


def can_flash(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether the CUDA flash kernel takes these (batch, heads, sequence, width) tensors.

    The conditions of ``torch.backends.cuda.can_use_flash_attention`` that matter for trained models, as
    Python that Dynamo evaluates while it traces (``CausalBias``, which asks torch, does not trace on 2.11).
    """
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or q.ndim != 4:
        return False
    width = q.shape[-1]
    return width % 8 == 0 and width <= 256 and k.shape[-1] == v.shape[-1] == width and _has_flash()


@torch.compiler.assume_constant_result
def _has_flash() -> bool:
    """Return whether this machine's GPU is an NVIDIA one of the Ampere generation or later."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


def flash_causal_lower_right(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float | None
) -> Tensor:
    """Attention in which the last query sees all keys, the one before it all but one, and so on.

    ``aten._scaled_dot_product_flash_attention`` aligns its causal mask to the lower right corner, as
    ``torch.nn.attention.bias`` relies on too; it takes fewer key and value heads than query heads.
    """
    operator = torch.ops.aten._scaled_dot_product_flash_attention.default
    return operator(q, k, v, dropout_p, True, scale=scale)[0]


def recompilations_allowed(limit: int) -> Any:
    """Return a context in which a function may be compiled for ``limit`` shapes (``torch._dynamo``)."""
    import torch._dynamo.config

    return torch._dynamo.config.patch(recompile_limit=limit, accumulated_recompile_limit=4 * limit)


@cache
def kept_operators() -> frozenset[Any]:
    """Return the overloads of operators whose results selective recomputation keeps.

    Matrix products, convolution, attention in all its kernels, and the functional collectives that reduce or
    exchange (``torch.ops._c10d_functional``). An operator that this torch lacks is left out.
    """
    aten = "mm addmm bmm baddbmm linear convolution _convolution _scaled_mm _grouped_mm"
    attention = (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable "
        "_scaled_dot_product_attention_math _flash_attention_forward _efficient_attention_forward"
    )
    reducing = "all_reduce reduce_scatter_tensor all_to_all_single"
    packets = [getattr(torch.ops.aten, name, None) for name in f"{aten} {attention}".split()]
    packets += [getattr(torch.ops._c10d_functional, name, None) for name in reducing.split()]
    return frozenset(getattr(p, overload) for p in packets if p is not None for overload in p.overloads())


def scale_in_place(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply tensors by a number that lies on their device (``torch._foreach_mul_``); waits for no device."""
    for dtype in {tensor.dtype for tensor in tensors}:
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        torch._foreach_mul_(same, factor.to(dtype))


@contextmanager
def muted_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Disconnect the hooks of ``register_hook`` and ``register_post_accumulate_grad_hook`` for a while.

    Setting ``Tensor._backward_hooks`` and ``_post_accumulate_grad_hooks`` connects another dict of hooks, here an
    empty one (None leaves the second kind connected); the hooks' own dicts stay the same, for handles remove from
    them. FSDP2 reads the second kind too.
    """
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    muted = [(p, name, hooks) for p in parameters for name in names if (hooks := getattr(p, name, None))]
    for parameter, name, _ in muted:
        setattr(parameter, name, OrderedDict())
    try:
        yield
    finally:
        for parameter, name, hooks in muted:
            setattr(parameter, name, hooks)


def mesh_of_others(mesh: DeviceMesh, axis: str, index: int) -> DeviceMesh:
    """Return the mesh of the ranks at ``index`` along ``axis``, to say where something is; it cannot communicate.

    ``DeviceMesh`` without process groups (``_init_backend``). A mesh of one axis becomes one of a single rank.
    """
    assert mesh.mesh_dim_names is not None
    ranks = mesh.mesh.select(mesh.mesh_dim_names.index(axis), index)
    names = tuple(name for name in mesh.mesh_dim_names if name != axis)
    if not names:
        ranks, names = ranks.reshape(1), (axis,)
    return DeviceMesh(mesh.device_type, ranks, mesh_dim_names=names, _init_backend=False)


class StageBase(_PipelineStageBase):
    """A pipeline stage that prepares nothing ahead: its methods allocate and send what they are asked for.

    ``torch.distributed.pipelining.stage._PipelineStageBase``, which schedules drive through public methods and the
    three hooks below (2.11 and 2.13 call them with different arguments). Schedules check for ``torch.compile`` and
    FSDP2 in ``submod``; a stage that handles both itself gives them an empty module.
    """

    def __init__(self, index: int, count: int, device: torch.device, group: ProcessGroup) -> None:
        super().__init__(torch.nn.Module(), index, count, device, group)

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> tuple[()]:  # type: ignore[override]
        self.args_recv_info = {0: ()}
        self.act_send_info = {}
        return ()

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        return None

    def _create_grad_recv_info(self, act_send_info: Any) -> tuple[()]:
        return ()


def can_split_backward() -> bool:
    """Return whether torch computes the gradients of weights apart from those of inputs, and rightly so.

    ``torch.distributed.pipelining._backward``; that of 2.11 counts some gradients twice where a weight is reached
    on several ways, which 2.13, known by its ``_autograd_grad_for_inputs``, does not.
    """
    return hasattr(pipelining_backward, "_autograd_grad_for_inputs")


def is_view(tensor: Tensor) -> bool:
    """Return whether autograd takes a tensor for a view of another, so that it cannot be detached in place."""
    return tensor._is_view()


def can_split_backward_at(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[torch.nn.Parameter]
) -> bool:
    """Whether ``backward_for_inputs`` leaves every gradient of a weight to one place on the way to the inputs.

    A weight that reaches an output beside the inputs (an embedding made on the stage and sent on) would be left
    out, one that several operators on the way read (a bias shared by blocks) run the graph between them twice.
    """
    node_of = pipelining_backward._get_grad_fn_or_grad_acc
    roots = [node for node in map(node_of, outputs) if node is not None]
    readers = pipelining_backward.construct_reverse_graph(roots)
    starts = [node for node in map(node_of, inputs) if node is not None]
    on_the_way, _ = pipelining_backward.reverse_closure(starts, set(), readers)
    for node in filter(None, map(node_of, weights)):
        beside, reached = pipelining_backward.reverse_closure([node], on_the_way, readers)
        if len(reached) > 1 or not beside.isdisjoint(roots):
            return False
    return True


def backward_for_inputs(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[torch.nn.Parameter],
) -> tuple[tuple[Tensor | None, ...], list[dict[str, Any]]]:
    """Return the gradients of ``inputs``, and what ``backward_for_weights`` needs (``stage_backward_input``).

    Detaches the outputs in place, which no output may be a view for.
    """
    return pipelining_backward.stage_backward_input(
        list(outputs), list(gradients), list(inputs), iter(weights)
    )


def backward_for_weights(weights: Sequence[torch.nn.Parameter], later: list[dict[str, Any]]) -> None:
    """Add to the gradients of ``weights`` what ``backward_for_inputs`` left out (``stage_backward_weight``)."""
    pipelining_backward.stage_backward_weight(iter(weights), later)


def finish_backward(root: FSDPModule) -> None:
    """Let FSDP2 reduce the gradients that it has collected, as at the end of a backward.

    ``FSDPState._root_post_backward_final_callback``, which ``torch.distributed.pipelining`` calls too.
    """
    root._get_fsdp_state()._root_post_backward_final_callback()
