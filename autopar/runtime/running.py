"""A program at work on one rank: the batch cut to this rank's slice, the forward, the outputs packed again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.runtime.batch import Input, local_inputs, shard_inputs, slices
from autopar.runtime.data import computes_in, rest
from autopar.runtime.gradients import LossScale
from autopar.runtime.homes import Homes
from autopar.runtime.joins import as_outputs
from autopar.runtime.mesh import Mesh
from autopar.runtime.microbatches import Counts, Microbatch, cut_inputs, run_microbatches
from autopar.runtime.pipeline import Pipeline
from autopar.runtime.schedule import PipelineRun
from autopar.runtime.state import Orders, clip_grad_norm, full_gradients, whole_state
from autopar.torch_private import read_structure, rebuild

__all__ = ["Running", "train_on_random_data"]

FIRST_SCALE = 2.0**16
"""The first scale of ``torch.amp.GradScaler``."""


@dataclass(frozen=True)
class Running:
    """What a generated ``build`` returns: call it like the module, on the global batch or this rank's slice."""

    module: nn.Module = field(repr=False)
    """The user's module, or the tree of parameters made in its place."""
    mesh: Mesh
    inputs: Sequence[Input]
    outputs: str
    """How the outputs are packed: ``tensor``, or a tree as torch writes it."""
    orders: Orders
    """Rows of parameters that are stored in another order than the plain model's."""
    microbatches: int = 1
    """Slices of the batch that run one after the other; the root's forward is written for one of them."""
    joins: Sequence[str] = ()
    """How each output of the root combines over microbatches: ``sum`` (of shares of a loss), or ``cat DIM``."""
    counts: Counts | None = field(default=None, repr=False, kw_only=True)
    """``counts(axes, *inputs)``: numbers of one microbatch, whose sums every microbatch's forward reads last."""
    pipeline: Pipeline | None = field(default=None, repr=False, kw_only=True)
    """The stages, where there are several."""
    loss_scale: float | None = field(default=None, kw_only=True)
    """What the first backward inside a call starts from; later ones start from the gradient that last came into the
    loss. Left out, ``FIRST_SCALE`` for modules that compute in float16, 1 for others."""
    _scale: LossScale = field(init=False, repr=False, compare=False)
    homes: Homes | None = field(init=False, repr=False, compare=False)
    """Where parameters are, in a pipeline."""
    _stages: PipelineRun | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        homes = Homes.from_records(self.pipeline.parameters, self.mesh) if self.pipeline else None
        object.__setattr__(self, "_scale", LossScale(self._first_scale()))
        object.__setattr__(self, "homes", homes)
        object.__setattr__(self, "_stages", None)
        if self.pipeline is not None and homes is not None:
            arguments = (self.module, self.mesh, self.pipeline, homes, self.microbatches, self.joins)
            object.__setattr__(self, "_stages", PipelineRun(*arguments))

    def _first_scale(self) -> float:
        if self.loss_scale is not None:
            return self.loss_scale
        return FIRST_SCALE if computes_in(self.module) is torch.float16 else 1.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward. Raises ``PlanMismatchError`` for a batch that the plan was not made for.

        In several microbatches backward runs inside the call, and ``backward()`` of the loss hands its gradients
        over; from any other output it raises ``ModelError``.
        """
        axes = self.mesh.axes
        local = [t.to(self.mesh.device) for t in local_inputs(self.inputs, axes, args, kwargs)]
        rest(self.module)
        slices = cut_inputs(self.inputs, local, self.microbatches, self.counts, axes)
        outputs = self._run(slices)
        if self.outputs == "tensor":
            return outputs[0]
        return rebuild(list(outputs), read_structure(self.outputs))

    def _run(self, slices: Sequence[Microbatch]) -> tuple[Tensor, ...]:
        if self._stages is not None:
            return self._stages(slices, self._scale)
        if self.microbatches > 1:
            return run_microbatches(self.module, slices, self.joins, self._scale)
        # The module's own __call__ may lead here: hooks and forward are nn.Module's business.
        return as_outputs(nn.Module.__call__(self.module, *slices[0]))

    def shard(self, *args: Any, **kwargs: Any) -> Any:
        """This rank's slice of a global batch, packed as it was passed."""
        return shard_inputs(self.inputs, self.mesh.axes, args, kwargs)

    @property
    def data_rank(self) -> int:
        """Which slice of the batch this rank reads."""
        return slices(self.inputs, self.mesh.axes)[0]

    @property
    def data_size(self) -> int:
        """How many slices the batch is cut into."""
        return slices(self.inputs, self.mesh.axes)[1]

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the norm of all gradients together; returns what it was, the same on every rank."""
        return clip_grad_norm(self.module, max_norm, norm_type, self.homes)

    def full_gradients(self) -> dict[str, Tensor]:
        """Every gradient as the plain model has it, by parameter name. All ranks must call it."""
        return full_gradients(self.module, self.orders, self.homes)

    def whole_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of the module with whole tensors on every rank. All ranks must call it."""
        return whole_state(state, self.homes)


def train_on_random_data(running: Running, steps: int = 5) -> None:
    """A few AdamW steps on one random batch, with a line of loss and time each: what the generated file does."""
    generator = torch.Generator().manual_seed(0)
    batch = [_random(each, generator).to(running.mesh.device) for each in running.inputs]
    optimizer = torch.optim.AdamW(running.module.parameters(), lr=1e-3)
    by_path = {each.path: tensor for each, tensor in zip(running.inputs, batch, strict=True)}
    args = [by_path[path] for path in sorted((p for p in by_path if p.isdigit()), key=int)]
    kwargs = {path: tensor for path, tensor in by_path.items() if not path.isdigit()}
    for step in range(steps):
        start_s = time.perf_counter()
        loss = running(*args, **kwargs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(
                f"step {step + 1}: loss {loss.item():.6f}, {time.perf_counter() - start_s:.3f} s", flush=True
            )
    if dist.is_initialized():
        dist.destroy_process_group()


def _random(each: Input, generator: torch.Generator) -> Tensor:
    """Normal numbers, or token numbers that every vocabulary has."""
    if each.dtype.is_floating_point:
        return torch.randn(each.shape, generator=generator, dtype=each.dtype)
    return torch.randint(2, each.shape, generator=generator).to(each.dtype)
