"""The order in which each rank of a pipeline computes, for every schedule there is.

The orders are those in which torch.distributed.pipelining (2.11 to 2.13) runs its schedules, idle turns left out:

- ``gpipe`` is ``ScheduleGPipe``: all forwards, then all backwards in the same order.
- ``1f1b`` is ``Schedule1F1B``. torch refuses fewer microbatches than stages, which work here. What torch *shows*
  as its last stage's order (``_get_pipeline_order``) counts forwards from 1; what it runs counts from 0, as here.
- ``interleaved`` is ``ScheduleInterleaved1F1B``: as there, microbatches come in rounds of about one per rank, and
  their number must be a multiple of the number of rounds.
- ``zero-bubble`` is ``ScheduleInterleavedZeroBubble``: with one chunk ZB-H1 (Qi et al., 2024), with several its
  interleaved form. Rank r lets r gradients of weights wait to fill the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cost_models.schedule_actions import ScheduledAction
from cost_models.schedules import check_schedule, microbatches_per_round

__all__ = ["compute_orders"]

Turn = tuple[int, int]
"""(stage, microbatch)"""


def compute_orders(
    schedule: str, *, ranks: int, microbatches: int, chunks: int = 1
) -> list[list[ScheduledAction]]:
    """What each rank computes, in order, where each rank holds ``chunks`` stages of the model.

    Raises ``ValueError`` for unknown schedules, numbers below 1, chunks in a schedule that has none, and
    microbatches that do not fill whole rounds.
    """
    check_schedule(schedule, ranks, microbatches, chunks)
    _check_rounds(schedule, ranks, microbatches, chunks)
    if schedule == "gpipe":
        return [_gpipe(rank, microbatches) for rank in range(ranks)]
    per_round = microbatches_per_round(ranks, microbatches)
    hop = 2 if schedule == "interleaved" else 1
    orders = []
    for rank in range(ranks):
        ahead = min((chunks - 1) * per_round + hop * (ranks - 1 - rank), chunks * microbatches)
        forwards, backwards = (
            list(_turns(rank, ranks, chunks, microbatches, per_round, is_backward=is_backward))
            for is_backward in (False, True)
        )
        is_split = schedule == "zero-bubble"
        orders.append(list(_one_by_one(forwards, backwards, ahead, rank if is_split else None)))
    return orders


def _gpipe(rank: int, microbatches: int) -> list[ScheduledAction]:
    return [ScheduledAction(rank, kind, each) for kind in "FB" for each in range(microbatches)]


def _check_rounds(schedule: str, ranks: int, microbatches: int, chunks: int) -> None:
    if schedule in ("gpipe", "1f1b"):
        if chunks > 1:
            raise ValueError(f"{schedule} takes one stage per rank, not {chunks} chunks")
        return
    rounds = max(1, microbatches // ranks)
    if microbatches % rounds:
        raise ValueError(
            f"{schedule} on {ranks} ranks takes {microbatches} microbatches in {rounds} rounds: "
            f"make them a multiple of {rounds}, such as {microbatches - microbatches % rounds}"
        )


def _turns(
    rank: int, ranks: int, chunks: int, microbatches: int, per_round: int, *, is_backward: bool
) -> Iterator[Turn]:
    """All forwards, or all backwards, of a rank."""
    done: Counter[int] = Counter()
    for turn in range(chunks * microbatches):
        chunk = turn // per_round % chunks
        stage = rank + ranks * (chunks - 1 - chunk if is_backward else chunk)
        yield stage, done[stage]
        done[stage] += 1


def _one_by_one(
    forwards: Sequence[Turn], backwards: Sequence[Turn], ahead: int, waiting_weights: int | None
) -> Iterator[ScheduledAction]:
    """``ahead`` forwards, then one forward and one backward in turn, then the backwards that are left.

    Backwards are split in two where ``waiting_weights`` says how many gradients of weights wait.
    """
    kind = "B" if waiting_weights is None else "I"
    for stage, microbatch in forwards[:ahead]:
        yield ScheduledAction(stage, "F", microbatch)
    for turn, (stage, microbatch) in enumerate(backwards):
        if ahead + turn < len(forwards):
            forward_stage, forward_microbatch = forwards[ahead + turn]
            yield ScheduledAction(forward_stage, "F", forward_microbatch)
        yield ScheduledAction(stage, kind, microbatch)
        if waiting_weights is not None and turn >= waiting_weights:
            waited_stage, waited_microbatch = backwards[turn - waiting_weights]
            yield ScheduledAction(waited_stage, "W", waited_microbatch)
    for stage, microbatch in backwards[max(0, len(backwards) - waiting_weights) :] if waiting_weights else ():
        yield ScheduledAction(stage, "W", microbatch)
