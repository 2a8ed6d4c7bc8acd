"""Pipeline stages as a program writes them down.

The mesh has an axis ``pp``, outermost; the other axes are one submesh per pipeline rank. A program lists its
stages in order, one entry each; stage i runs on rank i % size of ``pp``, so with as many stages as ranks each
has one, with twice as many each has two *chunks*, and so on. What a stage needs from an earlier one comes from
the stage just before: what a later stage reads is threaded through. A stage's forward is a function of the root
module; it takes what it receives, then the inputs that it reads, of one microbatch:

    def stage_0(self, tokens):
        x = embedding(tokens, local(self.embed.weight), (), 50257)
        for block in self.blocks[:6]:
            x = block(x)
        return x

    def stage_1(self, x, targets, target_count):
        for block in self.blocks[6:]:
            x = block(x)
        logits = F.linear(x, local(self.embed.weight))
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / target_count

    HIDDEN = Wire((4, 1024, 768), torch.bfloat16)
    STAGES = [
        Stage(stage_0, reads=(0,), sends=(HIDDEN,)),
        Stage(stage_1, reads=(1, 2), receives=(HIDDEN,)),
    ]
    PARAMETERS = [
        Parameter("embed.weight", (50257, 768), torch.float32, stages=(0, 1)),   # tied: a copy on both ranks
        Parameter("blocks.0.up.weight", (3072, 768), torch.float32, stages=(0,)),
        ...
    ]

    def build(module=None, ...):
        ...
        distribute(module, PARAMETERS, mesh, MODEL_AXES)     # parameters of other ranks' stages become empty
        bind(module, {path: kind.forward for path, kind in BLOCKS.items()}, mesh.axes)    # no "" : stages are run
        shard_data(module, BLOCKS, mesh, ...)                 # blocks of other ranks' stages are left alone
        return Running(
            module, mesh, INPUTS, OUTPUTS, orders, MICROBATCHES, JOINS,
            counts=count_targets_of, pipeline=Pipeline(STAGES, PARAMETERS, "1f1b"),
        )

``reads`` are positions in ``INPUTS``, then in what ``counts`` returns. The last stage returns the root's outputs.
``RANDOM_AXES`` should name ``pp`` too, or layers of different stages draw the same numbers.

| schedule      | torch                           | stages per rank | microbatches                       |
| ------------- | ------------------------------- | --------------- | ---------------------------------- |
| `gpipe`       | ``ScheduleGPipe``               | 1               | any                                |
| `1f1b`        | ``Schedule1F1B``                | 1               | at least as many as stages         |
| `interleaved` | ``ScheduleInterleaved1F1B``     | 1 or more       | a multiple of microbatches // ranks |
| `zero-bubble` | ``ScheduleInterleavedZeroBubble`` | 1 or more       | a multiple of microbatches // ranks |

`zero-bubble` is ZB1P of Qi et al., Zero bubble pipeline parallelism, 2023: the gradients of what a stage received
go back first, those of its weights fill the bubbles. That takes torch 2.13 or later, blocks that are neither
compiled nor recomputed, and gradients that are reduced once (ZeRO 1, or replicated parameters); otherwise the
first half of a backward is all of it, and the schedule is as long as `1f1b`.

With several stages on a rank, gradients of parameters that belong to no block are reduced once, at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autopar.runtime.parameter import Parameter

__all__ = ["SCHEDULES", "Pipeline", "Stage", "Wire"]

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


@dataclass(frozen=True)
class Wire:
    """One tensor that a stage sends to the next, of one microbatch, as a rank holds it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = True
    """Whether a gradient comes back; never for whole numbers and truth values."""

    def __post_init__(self) -> None:
        if self.requires_grad and not self.dtype.is_floating_point:
            raise ValueError(f"a wire of {self.dtype} has no gradient: say requires_grad=False")


@dataclass(frozen=True)
class Stage:
    """One stage: what runs, and what comes and goes with each microbatch."""

    forward: Callable[..., Any]
    """``forward(root, *received, *read inputs)``: what it sends, or the root's outputs if it is the last."""
    reads: tuple[int, ...] = ()
    """Positions of the inputs it reads, among the program's inputs and then the counts."""
    receives: tuple[Wire, ...] = ()
    sends: tuple[Wire, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """All stages, in order, and the order in which microbatches go through them."""

    stages: Sequence[Stage]
    parameters: Sequence[Parameter]
    """Every parameter and buffer of the program, each with the stages that use it."""
    schedule: str = "1f1b"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"a schedule is one of {', '.join(SCHEDULES)}, not '{self.schedule}'")
        for number, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if before.sends != after.receives:
                raise ValueError(
                    f"stage {number} sends {before.sends}, stage {number + 1} receives {after.receives}"
                )
