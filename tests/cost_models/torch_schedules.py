"""The orders in which torch.distributed.pipelining runs its schedules, as text, on a process group that is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

CLASSES = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zero-bubble": pipelining.ScheduleInterleavedZeroBubble,
}


@contextmanager
def schedule(name: str, *, rank: int, ranks: int, microbatches: int, chunks: int = 1) -> Iterator[Any]:
    """torch's own schedule object on one of ``ranks`` imagined ranks. Raises ``ValueError`` as torch does."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        stages = [
            PipelineStage(torch.nn.Identity(), rank + ranks * chunk, ranks * chunks, torch.device("cpu"))
            for chunk in range(chunks)
        ]
        takes_many = name in ("interleaved", "zero-bubble")
        yield CLASSES[name](stages if takes_many else stages[0], microbatches, torch.sum)
    finally:
        dist.destroy_process_group()


def orders_with_transfers(name: str, *, ranks: int, microbatches: int, chunks: int) -> list[list[str]]:
    """Everything that each rank does under a schedule of several stages, without the optimizer."""
    with schedule(name, rank=0, ranks=ranks, microbatches=microbatches, chunks=chunks) as made:
        return [[str(action) for action in made.pipeline_order_with_comms[rank]] for rank in range(ranks)]


def recorded_order(name: str, *, rank: int, ranks: int, microbatches: int) -> list[str]:
    """What one rank computes while a schedule of one stage runs."""
    with schedule(name, rank=rank, ranks=ranks, microbatches=microbatches) as made:
        stage = RecordingStage(rank)
        made._stage = stage
        made._initialize_stage = lambda *given: None
        nothing = [()] * microbatches
        made._step_microbatches(nothing, [{}] * microbatches, nothing, None)
        return stage.computed


class RecordingStage:
    """Stands in for a stage: notes what it is told to compute, and has nothing to send."""

    is_last = False

    def __init__(self, stage_index: int) -> None:
        self.stage_index = stage_index
        self.computed: list[str] = []

    def forward_one_chunk(self, microbatch: int, *given: object, **options: object) -> None:
        self.computed.append(f"{self.stage_index}F{microbatch}")

    def backward_one_chunk(self, microbatch: int, **options: object) -> None:
        self.computed.append(f"{self.stage_index}B{microbatch}")

    def perform_reduce_grad(self, factor: int) -> None:
        self.computed.append(f"{self.stage_index}REDUCE_GRAD")

    def _no_transfers(self, microbatch: int) -> list[object]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _no_transfers
