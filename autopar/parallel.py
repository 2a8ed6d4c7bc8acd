"""``autopar.parallelize``: a plain module trained in parallel, with the user's own training loop.

The module stays the object it is; its class gains ``Parallel`` as a base. At its first call (or at once, from a
plan or example inputs) it is planned, and its forward replaced by the generated program's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.clusters import cluster_named, local_cluster
from autopar.errors import AutoparError, PlanMismatchError
from autopar.plan.files import format_plan, parse_plan, read_plan, write_program
from autopar.plan.schema import Plan
from autopar.planning import PlanOptions, check_model, generate_program, plan_model
from autopar.runtime.data import rest
from autopar.runtime.identity import keep_identity
from autopar.runtime.mesh import join_world
from autopar.runtime.running import Running
from autopar.runtime.source import load_source
from autopar.torch_private import is_in_backward
from autopar.world import computed_once, node_count, world_size

__all__ = ["Parallel", "parallelize"]


@dataclass(frozen=True, slots=True)
class _Request:
    """What ``parallelize`` was asked for."""

    cluster: str
    options: PlanOptions
    plan: Plan | None
    compile: bool | None
    save_to: Path | None


class Parallel:
    """Base that ``parallelize`` adds to a module's class."""

    _autopar_request: _Request
    _autopar_running: Running | None
    _autopar_plan: Plan | None
    _autopar_is_called: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward on the global batch, or on this rank's slice of it (``shard``)."""
        if self._autopar_running is None:
            prepare(self, args, kwargs)
        object.__setattr__(self, "_autopar_is_called", True)
        try:
            return self.running(*args, **kwargs)
        finally:
            object.__setattr__(self, "_autopar_is_called", False)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The module's own, as they are at rest; ``parameters()`` and ``zero_grad()`` read these."""
        if self._autopar_running is not None and not self._autopar_is_called and not is_in_backward():
            rest(self)  # type: ignore[arg-type]
        return super().named_parameters(*args, **kwargs)  # type: ignore[misc]

    def shard(self, *args: Any, **kwargs: Any) -> Any:
        """This rank's slice of a global batch, packed as it was passed; one positional argument alone is not packed.

        Plans first, if nothing has been planned yet.
        """
        if self._autopar_running is None:
            prepare(self, args, kwargs)
        return self.running.shard(*args, **kwargs)

    @property
    def plan(self) -> Plan:
        """The plan in use. Raises ``AutoparError`` before the first call."""
        if self._autopar_plan is None:
            raise AutoparError(
                "the module has no plan yet: call it once, or pass inputs= or plan= to parallelize"
            )
        return self._autopar_plan

    @property
    def running(self) -> Running:
        """The program at work: its mesh, its axes, its source. Raises ``AutoparError`` before the first call."""
        if self._autopar_running is None:
            raise AutoparError(
                "the module has no program yet: call it once, or pass inputs= or plan= to parallelize"
            )
        return self._autopar_running

    @property
    def data_rank(self) -> int:
        """Which of ``data_size`` slices of the batch this rank reads."""
        return self.running.data_rank

    @property
    def data_size(self) -> int:
        """How many different slices of the batch the ranks read."""
        return self.running.data_size

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most ``max_norm``; returns the norm before."""
        return self.running.clip_grad_norm_(max_norm, norm_type)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The plain model's state: whole tensors under its names. Every rank must call it, as it communicates."""
        state = self.sharded_state_dict(*args, **kwargs)
        return state if self._autopar_running is None else self._autopar_running.whole_state(state)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The same as DTensors, each rank its shard: for ``torch.distributed.checkpoint``."""
        return super().state_dict(*args, **kwargs)  # type: ignore[misc]


def parallelize(
    module: Any = None,
    *,
    cluster: str = "",
    inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    plan: Plan | str | Path | None = None,
    pin: str = "",
    memory: int | None = None,
    optimizer: str = "adamw",
    precision: str = "fp32",
    compile: bool | None = None,
    save_to: str | Path | None = None,
) -> Any:
    """Make ``module`` train in parallel over the running world; returns the same object.

    A module class (also as the decorator ``@autopar.parallelize`` or ``@autopar.parallelize(...)``) becomes a
    subclass whose instances are parallel.

    ``cluster``   what to plan for, such as ``h100:8``; the devices at hand by default.
    ``inputs``    example inputs of the whole global batch, to plan at once instead of at the first call.
    ``plan``      a plan made before, or its file, instead of planning.
    ``pin``       choices taken out of the search, such as ``tp=2``.
    ``memory``    limit per device in bytes; the device's capacity by default.
    ``compile``   run each block type and the loss head through ``torch.compile``; as the plan says by default.
    ``save_to``   folder in which rank 0 leaves ``plan.json`` and ``program.py``.

    Parameters become DTensors under their own names, and stay the same objects, so an optimizer made before or
    after works alike. Raises ``AutoparError``: see ``autopar.errors``.
    """
    loaded = read_plan(plan) if isinstance(plan, (str, Path)) else plan
    request = _Request(
        cluster=cluster,
        options=PlanOptions(pin, memory, optimizer, precision, compile=compile),
        plan=loaded,
        compile=compile,
        save_to=Path(save_to) if save_to else None,
    )
    if module is None:
        return lambda kind: _parallel_class(kind, request, inputs)
    if isinstance(module, type):
        return _parallel_class(module, request, inputs)
    return _made_parallel(module, request, inputs)


def _parallel_class(kind: type[nn.Module], request: _Request, inputs: Any) -> type[nn.Module]:
    """A subclass of ``kind`` whose instances are parallel from their construction on."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        kind.__init__(self, *args, **kwargs)
        _set_up(self, request)
        _prepare_ahead(self, inputs)

    body = {"__init__": __init__, "__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(kind.__name__, (Parallel, kind), body)


def _made_parallel(module: nn.Module, request: _Request, inputs: Any) -> nn.Module:
    if isinstance(module, Parallel):
        raise AutoparError(f"this {type(module).__name__} is parallel already: call parallelize once")
    kind = type(module)
    module.__class__ = type(kind.__name__, (Parallel, kind), {"__module__": kind.__module__})
    _set_up(module, request)
    _prepare_ahead(module, inputs)
    return module


def _set_up(module: Any, request: _Request) -> None:
    """Give the module its place for a plan, and ready its parameters to become DTensors."""
    object.__setattr__(module, "_autopar_request", request)
    object.__setattr__(module, "_autopar_running", None)
    object.__setattr__(module, "_autopar_plan", None)
    object.__setattr__(module, "_autopar_is_called", False)
    keep_identity(module)


def _prepare_ahead(module: Any, inputs: Any) -> None:
    """Plan at once where there are example inputs."""
    if inputs is not None:
        args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))
        prepare(module, args, kwargs)


def prepare(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Plan for the running world (or check the given plan) and put the program to work. All ranks call it."""
    request: _Request = module._autopar_request
    if world_size() > 1:
        join_world(_device_type())
    text, source = computed_once(lambda: _planned(module, request, args, kwargs))
    plan = parse_plan(text)
    is_compiled = plan.training.compile if request.compile is None else request.compile
    running = load_source(source).build(module, compile=is_compiled)
    object.__setattr__(module, "_autopar_plan", plan)
    object.__setattr__(module, "_autopar_running", running)


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _planned(
    module: Any, request: _Request, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, str]:
    """Plan and program as text, on one rank; left in a folder where that was asked for."""
    plan = _plan(module, request, args, kwargs)
    text, source = format_plan(plan), generate_program(plan)
    if request.save_to is not None:
        write_program(plan, source, request.save_to)
    return text, source


def _plan(module: Any, request: _Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    plain = _plain_view(module)
    if request.plan is not None:
        _check_world(
            prod(axis.size for axis in request.plan.mesh), f"the plan for {request.plan.cluster.name}"
        )
        check_model(request.plan, plain, args, kwargs)
        return request.plan
    cluster = cluster_named(request.cluster) if request.cluster else local_cluster(world_size(), node_count())
    _check_world(cluster.devices, f"the cluster {cluster.name}")
    return plan_model(plain, args, kwargs, cluster, request.options)


def _check_world(devices: int, what: str) -> None:
    if devices != world_size():
        raise PlanMismatchError(
            f"{what} has {devices} devices, the running world {world_size()} processes. "
            f"Start {devices} processes (torchrun --nproc-per-node {devices} …), or plan for {world_size()}."
        )


def _plain_view(module: nn.Module) -> nn.Module:
    """The module as the user wrote it, for capture to read: a copy that shares all tensors.

    Capture leaves weak references to what it reads, and a parameter with one cannot become a DTensor.
    """
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    shared |= {
        id(value): None for value in vars(module).values() if isinstance(value, _Request | Plan | Running)
    }
    plain = copy.deepcopy(module, shared)
    kinds: list[Any] = [kind for kind in type(module).__mro__ if not issubclass(kind, Parallel)]
    plain.__class__ = kinds[0]
    return plain
