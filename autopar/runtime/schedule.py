"""One call through pipeline stages: torch's schedule runs forward and backward of all microbatches.

Gradients are kept aside until the user's ``backward()``, as ``autopar.runtime.gradients`` says; those of tied
weights are summed over the ranks that hold a copy first. The outputs of the last stage come back on every rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor import DTensor

from autopar.errors import PlanMismatchError
from autopar.runtime.binding import bind, can_split
from autopar.runtime.data import (
    data_parts,
    end_step_at,
    hold_at,
    keeps_gradients_whole,
    reduce_at,
    rest,
)
from autopar.runtime.gradients import KeptGradients, LossScale, set_aside
from autopar.runtime.homes import Homes
from autopar.runtime.identity import holders
from autopar.runtime.joins import as_outputs, joined
from autopar.runtime.mesh import PIPELINE, Mesh
from autopar.runtime.microbatches import Microbatch, with_backward
from autopar.runtime.pipeline import Pipeline
from autopar.runtime.stage import RunningStage
from autopar.torch_private import can_split_backward, finish_backward

__all__ = ["PipelineRun"]

_ONE_STAGE: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
_SEVERAL: dict[str, Any] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
}


class PipelineRun:
    """A pipeline on this rank."""

    def __init__(
        self,
        module: nn.Module,
        mesh: Mesh,
        pipeline: Pipeline,
        homes: Homes,
        microbatches: int,
        joins: Sequence[str],
    ) -> None:
        self.module, self.pipeline, self.homes, self.joins = module, pipeline, homes, joins
        self.microbatches = microbatches
        axis = mesh.axes[PIPELINE]
        self._bind_stages(mesh)
        count = len(pipeline.stages)
        self.splits_backward = (
            pipeline.schedule == "zero-bubble"
            and can_split_backward()
            and can_split(module)
            and keeps_gradients_whole(data_parts(module))
        )
        self.stages = [
            RunningStage(
                module,
                pipeline.stages,
                i,
                homes.group,
                mesh.device,
                joins,
                self._before_backward,
                splits_backward=self.splits_backward,
            )
            for i in range(axis.index, count, axis.size)
        ]
        self.last_rank = (count - 1) % axis.size
        self.schedule = self._schedule(axis.size)
        self.parts = _parts_by_stage(module, pipeline, [stage.stage_index for stage in self.stages])
        self.remaining: Counter[int] = Counter()
        self.signatures: dict[bool, Any] = {}

    def _bind_stages(self, mesh: Mesh) -> None:
        """Make the root's forward that of the stage whose number comes first.

        A value that it passes on becomes its position among the arguments: FSDP2 has made the arguments views.
        """
        stages = self.pipeline.stages

        def forward(root: nn.Module, number: int, *values: Tensor) -> tuple[Tensor | int, ...]:
            outputs = as_outputs(stages[number].forward(root, *values))
            places = {id(value): place for place, value in enumerate(values)}
            return tuple(places.get(id(output), output) for output in outputs)

        bind(self.module, {"": forward}, mesh.axes)

    def _schedule(self, ranks: int) -> Any:
        name, count = self.pipeline.schedule, len(self.pipeline.stages)
        if count % ranks or (name in _ONE_STAGE and count != ranks):
            raise PlanMismatchError(
                f"the schedule {name} cannot run {count} stages on {ranks} ranks: it takes "
                + ("one stage per rank" if name in _ONE_STAGE else "as many stages on every rank")
            )
        options = {"n_microbatches": self.microbatches, "loss_fn": lambda loss, _: loss, "scale_grads": False}
        try:
            if name in _ONE_STAGE:
                return _ONE_STAGE[name](self.stages[0], **options)
            return _SEVERAL[name](self.stages, **options)
        except ValueError as error:
            raise PlanMismatchError(
                f"the schedule {name} cannot run {self.microbatches} microbatches through {count} stages: {error}"
            ) from error

    def __call__(self, slices: Sequence[Microbatch], scale: LossScale) -> tuple[Tensor, ...]:
        """The outputs of the whole batch; with gradients enabled, backward has run already."""
        is_training = torch.is_grad_enabled() and "sum" in self.joins
        for stage in self.stages:
            stage.begin(slices, scale)
        kept = KeptGradients()
        if is_training:
            kept = self._train(scale)
        else:
            with torch.no_grad():
                self.schedule.eval(target=torch.arange(self.microbatches), return_outputs=False)
        rest(self.module)
        outputs, place, have_gradients = self._outputs(is_training)
        for stage in self.stages:
            stage.begin((), scale)  # keeps no tensor of this call
        if not torch.is_grad_enabled():
            return outputs
        if not is_training:
            have_gradients = [any(p.requires_grad for p in self.pipeline.parameters)] * len(outputs)
        elif place is not None:
            kept.start = scale.start(outputs[place])
        return with_backward(outputs, have_gradients, place, kept, scale)

    def _train(self, scale: LossScale) -> KeptGradients:
        """Run the schedule forward and backward; the gradients, those of tied weights summed."""
        self.remaining = Counter({stage.stage_index: self.microbatches for stage in self.stages})
        parameters = [p for p in nn.Module.parameters(self.module) if p.requires_grad]
        parts = {part for parts in self.parts.values() for part in parts}
        if self.splits_backward:  # gradients of weights come late: FSDP2 reduces them when all are there
            hold_at(parts)
        try:
            with set_aside(parameters) as kept:
                self.schedule.step(target=torch.arange(self.microbatches), return_outputs=False)
                if self.splits_backward and isinstance(self.module, FSDPModule):
                    reduce_at(parts, is_last=True)
                    end_step_at(parts, is_last=True)
                    finish_backward(self.module)
                self._sum_tied()
                if scale.guards_overflow:
                    self._share_overflow(parameters)
        finally:
            reduce_at(parts, is_last=True)
            end_step_at(parts, is_last=True)
        return kept

    def _before_backward(self, number: int) -> None:
        """Say what is reduced in the next backward, of stage ``number``."""
        if self.splits_backward:
            return
        for part in self.parts[number]:
            mine = [other for other, parts in self.parts.items() if part in parts]
            left = sum(self.remaining[other] for other in mine)
            reduce_at([part], is_last=left == 1, is_once=len(mine) > 1)
        end_step_at(self.parts[number], is_last=sum(self.remaining.values()) == 1)
        self.remaining[number] -= 1

    def _sum_tied(self) -> None:
        """Sum gradients of parameters that several ranks hold copies of."""
        for holder in holders(self.module):
            name, parameter = holder.names[0], holder.parameter
            if len(self.homes.of[name]) == 1 or self.homes.rank not in self.homes.of[name]:
                continue
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            mine = _local(parameter.grad)
            mine.copy_(self.homes.sum_over_homes(name, mine.contiguous()))

    def _share_overflow(self, parameters: Sequence[nn.Parameter]) -> None:
        """Where any stage's gradients are not finite, make one of every rank so: ``GradScaler`` sees its own alone."""
        gradients = [_local(p.grad) for p in parameters if p.grad is not None]
        zero = 0 * sum((gradient.sum(dtype=torch.float32) for gradient in gradients), start=torch.zeros(()))
        total = zero.to(self.homes.device)  # 0, or nan
        dist.all_reduce(total, group=self.homes.group)
        if gradients:
            gradients[0].add_(total.to(gradients[0].dtype))

    def _outputs(self, is_training: bool) -> tuple[tuple[Tensor, ...], int | None, list[bool]]:
        """The root's outputs, where the loss is and which of them have gradients, from the last stage's rank."""
        last = self.stages[-1]
        is_here = self.homes.rank == self.last_rank
        outputs: tuple[Tensor, ...] = ()
        if is_here:
            outputs = joined([last.results[number] for number in range(self.microbatches)], self.joins)
        if is_training not in self.signatures:
            shapes = [(tuple(output.shape), output.dtype) for output in outputs]
            self.signatures[is_training] = self._from_last((shapes, last.place, last.have_gradients))
        shapes, place, have_gradients = self.signatures[is_training]
        if not is_here:
            outputs = tuple(torch.empty(s, dtype=d, device=self.homes.device) for s, d in shapes)
        outputs = tuple(self.homes.broadcast(output.contiguous(), self.last_rank) for output in outputs)
        return outputs, place, have_gradients

    def _from_last(self, value: Any) -> Any:
        box = [value]
        source = dist.get_global_rank(self.homes.group, self.last_rank)
        dist.broadcast_object_list(box, src=source, group=self.homes.group, device=self.homes.device)
        return box[0]


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _parts_by_stage(
    module: nn.Module, pipeline: Pipeline, stages: Sequence[int]
) -> dict[int, list[FSDPModule]]:
    """What FSDP2 gathers and reduces as one, by the stage that uses it; the root is every stage's."""
    used: dict[str, set[int]] = {}
    for parameter in pipeline.parameters:
        path = parameter.name
        while path:
            path = path.rpartition(".")[0]
            used.setdefault(path, set()).update(parameter.stages)
    found: dict[int, list[FSDPModule]] = {stage: [] for stage in stages}
    for path, part in module.named_modules():
        if isinstance(part, FSDPModule):
            for stage in stages:
                if not path or stage in used.get(path, ()):
                    found[stage].append(part)
    return found
