"""One pipeline stage at work: what torch's schedules ask of a stage.

It differs from ``torch.distributed.pipelining.PipelineStage`` in four ways: buffers to receive into live only as
long as their microbatch is in flight (``PipelineStage`` holds them for all microbatches at once), wires may carry
whole numbers and tensors without gradients, a stage reads inputs of its own, and FSDP2 reduces gradients as the
ZeRO level says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from autopar.errors import ModelError
from autopar.runtime.gradients import LossScale
from autopar.runtime.homes import is_elsewhere
from autopar.runtime.joins import loss_position
from autopar.runtime.microbatches import Microbatch, start_backward
from autopar.runtime.pipeline import Stage, Wire
from autopar.torch_private import (
    StageBase,
    backward_for_inputs,
    backward_for_weights,
    can_split_backward_at,
    is_view,
)

__all__ = ["RunningStage"]


class RunningStage(StageBase):
    """A stage of a program, on the rank that runs it. ``begin`` it before each run of the schedule."""

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[Stage],
        number: int,
        group: ProcessGroup,
        device: torch.device,
        joins: Sequence[str],
        before_backward: Callable[[int], None],
        *,
        splits_backward: bool = False,
    ) -> None:
        super().__init__(number, len(stages), device, group)
        self.splits_backward = splits_backward
        self.module, self.stage, self.joins = module, stages[number], joins
        self.before_backward = before_backward
        self.begin((), LossScale())

    def begin(self, slices: Sequence[Microbatch], scale: LossScale) -> None:
        """Forget the run before; ``slices`` are what each microbatch's forward reads of."""
        self.slices, self.scale = slices, scale
        self.received: dict[int, tuple[Tensor, ...]] = {}
        self.made: dict[int, tuple[Tensor, ...]] = {}
        self.gradients_received: dict[int, tuple[Tensor, ...]] = {}
        self.gradients_made: dict[int, tuple[Tensor, ...]] = {}
        self.later: dict[int, Callable[[], None]] = {}
        self.results: dict[int, tuple[Tensor, ...]] = {}
        self.place: int | None = None
        self.have_gradients: list[bool] = []

    def clear_runtime_states(self) -> None:
        """Nothing: ``begin`` did it."""

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive what the stage before sends of a microbatch."""
        self.received[fwd_chunk_id] = self._buffers(self.stage.receives)
        return self._operations(dist.irecv, self.received[fwd_chunk_id], self.stage_index - 1)

    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True
    ) -> Tensor:
        """Run a microbatch's forward; returns its loss, without gradient, on the last stage."""
        received = self.received.get(fwd_chunk_id, ())
        for tensor, wire in zip(received, self.stage.receives, strict=True):
            tensor.requires_grad_(wire.requires_grad and self.has_backward)
        read = (self.slices[fwd_chunk_id][position] for position in self.stage.reads)
        given = (*received, *read)
        made = nn.Module.__call__(self.module, self.stage_index, *given)
        outputs = tuple(given[output] if isinstance(output, int) else output for output in made)
        if not self.has_backward:
            self.received.pop(fwd_chunk_id, None)
        if self.is_last:
            return self._finish(fwd_chunk_id, outputs)
        assert len(outputs) == len(self.stage.sends)
        self.made[fwd_chunk_id] = outputs
        return torch.empty(0)

    def _finish(self, number: int, outputs: tuple[Tensor, ...]) -> Tensor:
        """Keep the root's outputs, and of those with gradients the loss alone."""
        self.results[number] = tuple(output.detach() for output in outputs)
        self.place, self.have_gradients = (
            loss_position(outputs, self.joins),
            [o.requires_grad for o in outputs],
        )
        if not self.has_backward:
            return torch.empty(0)
        if self.place is None:
            raise ModelError(
                "no output of the model is a scalar loss with a gradient: a pipeline cannot train it"
            )
        self.made[number] = (outputs[self.place],)
        return self.results[number][self.place]

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send a microbatch's values to the next stage."""
        if self.is_last:
            return []
        made = self.made[fwd_chunk_id] if self.has_backward else self.made.pop(fwd_chunk_id)
        return self._operations(dist.isend, made, self.stage_index + 1)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive the gradients of what was sent."""
        if not self.has_backward or self.is_last:
            return []
        buffers = self._buffers([wire for wire in self.stage.sends if wire.requires_grad])
        self.gradients_received[bwd_chunk_id] = buffers
        return self._operations(dist.irecv, buffers, self.stage_index + 1)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """Run a microbatch's backward, for what was received and, with ``full_backward``, for the parameters.

        Without, ``backward_weight_one_chunk`` has to follow; where backward cannot be split it has nothing to do.
        """
        if not self.has_backward:
            return
        outputs, gradients = self._outputs_and_gradients(bwd_chunk_id)
        self.before_backward(self.stage_index)
        is_split = self.splits_backward and not full_backward and not any(map(is_view, outputs))
        if is_split and self.is_first:
            self.later[bwd_chunk_id] = partial(start_backward, outputs, gradients)
        elif is_split and can_split_backward_at(outputs, self._received(bwd_chunk_id), self._weights()):
            self._backward_for_received(bwd_chunk_id, outputs, gradients)
        else:
            start_backward(outputs, gradients)
            self._keep_gradients(bwd_chunk_id)

    def _backward_for_received(self, number: int, outputs: list[Tensor], gradients: list[Tensor]) -> None:
        """The half of a backward that the stage before waits for."""
        inputs, weights = self._wanting_gradients(number), self._weights()
        with torch.autocast(self.device.type, enabled=False):
            found, groups = backward_for_inputs(outputs, gradients, inputs, weights)
        self.gradients_made[number] = tuple(
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(inputs, found, strict=True)
        )
        self.later[number] = partial(backward_for_weights, weights, groups)

    def _outputs_and_gradients(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where backward starts, and with what."""
        made = self.made.pop(number)
        if self.is_last:
            return [made[0]], [self.scale.start(made[0])]
        sent = [tensor for tensor, wire in zip(made, self.stage.sends, strict=True) if wire.requires_grad]
        pairs = zip(sent, self.gradients_received.pop(number), strict=True)
        wanting = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad]
        return [tensor for tensor, _ in wanting], [gradient for _, gradient in wanting]

    def _keep_gradients(self, number: int) -> None:
        """Take the gradients off what was received, zeros where nothing came."""
        self.gradients_made[number] = tuple(
            torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for tensor in self._wanting_gradients(number)
        )

    def _wanting_gradients(self, number: int) -> list[Tensor]:
        """Of what was received, for the last time, the tensors whose gradients go back."""
        wanting = self._received(number)
        self.received.pop(number, None)
        return [] if self.is_first else wanting

    def _received(self, number: int) -> list[Tensor]:
        """Of what was received, the tensors whose gradients go back."""
        received = self.received.get(number, ())
        if not received:
            return []
        return [t for t, wire in zip(received, self.stage.receives, strict=True) if wire.requires_grad]

    def _weights(self) -> list[nn.Parameter]:
        """What this rank trains."""
        return [p for p in nn.Module.parameters(self.module) if p.requires_grad and not is_elsewhere(p)]

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send the gradients of what was received."""
        if not self.has_backward or self.is_first:
            return []
        return self._operations(dist.isend, self.gradients_made.pop(bwd_chunk_id), self.stage_index - 1)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """The half of a microbatch's backward that nobody waits for."""
        if later := self.later.pop(bwd_chunk_id, None):
            with torch.autocast(self.device.type, enabled=False):
                later()

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Nothing: FSDP2 reduces gradients in backward itself."""

    def _buffers(self, wires: Sequence[Wire]) -> tuple[Tensor, ...]:
        return tuple(torch.empty(wire.shape, dtype=wire.dtype, device=self.device) for wire in wires)

    def _operations(self, kind: Any, tensors: Sequence[Tensor], stage: int) -> list[dist.P2POp]:
        """Sends to, or receives from, the rank that runs a stage."""
        if not tensors or not 0 <= stage < self.num_stages:
            return []
        assert self.group is not None
        peer = dist.get_global_rank(self.group, self.stage_index_to_group_rank[stage])
        return [dist.P2POp(kind, _as_bytes(tensor.detach()), peer, self.group) for tensor in tensors]


def _as_bytes(tensor: Tensor) -> Tensor:
    """A tensor as gloo and NCCL carry it: contiguous, truth values as bytes. A buffer stays the same memory."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor
