"""Closed forms of pipeline schedules: how long, how idle, how many microbatches in flight.

GPipe: Huang et al. (2019). 1F1B: Narayanan et al., PipeDream-2BW (2021). Interleaved: Narayanan et al.,
"Efficient large-scale language model training on GPU clusters using Megatron-LM" (SC 2021). Zero bubble:
Qi et al., "Zero bubble pipeline parallelism" (2024), schedule ZB-H1.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "SCHEDULES",
    "bubble_fraction",
    "check_schedule",
    "microbatches_in_flight",
    "microbatches_per_round",
    "pipeline_s",
]

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


def bubble_fraction(schedule: str, *, stages: int, microbatches: int, chunks: int = 1) -> float:
    """Idle share of a pipeline of equal stages, 0 to 1.

    GPipe and 1F1B: (S−1)/(S−1+M). Interleaving divides the filling by the ``chunks`` each rank holds. ZB-H1
    fills two thirds of it with weight gradients, where forward, input and weight gradient take equally long;
    with chunks it does both.
    """
    check_schedule(schedule, stages, microbatches, chunks)
    filling = (stages - 1) / _filling_divisor(schedule, chunks)
    return filling / (filling + microbatches)


def pipeline_s(
    schedule: str,
    stage_s: Sequence[float],
    *,
    microbatches: int,
    chunks: int = 1,
    transfer_s: float = 0.0,
) -> float:
    """Seconds from the first microbatch to the last gradient: Σ tᵢ + (M−1)·max tⱼ, less what fills bubbles.

    ``stage_s`` is forward + backward of one microbatch on each pipeline rank; ``transfer_s`` what each
    boundary adds in one direction for one microbatch and is not hidden behind compute.
    """
    check_schedule(schedule, len(stage_s), microbatches, chunks)
    slowest = max(stage_s)
    filling = (sum(stage_s) - slowest) / _filling_divisor(schedule, chunks)
    return filling + microbatches * slowest + 2.0 * (len(stage_s) - 1) * transfer_s


def microbatches_in_flight(
    schedule: str, *, stages: int, stage: int, microbatches: int, chunks: int = 1
) -> float:
    """Most microbatches whose activations ``stage`` (0 first) holds at once, in units of the whole stage.

    Interleaving holds (S−1)/(S·chunks) more than 1F1B on the first rank. Where weight gradients wait to fill
    bubbles, every rank holds as much as the first: what the gradient of a weight needs counts until it is made.
    """
    check_schedule(schedule, stages, microbatches, chunks)
    if schedule == "gpipe":
        return float(microbatches)
    if schedule == "1f1b":
        return float(min(stages - stage, microbatches))
    ahead = 2 * (stages - stage - 1) if schedule == "interleaved" else stages - 1
    ahead += (chunks - 1) * microbatches_per_round(stages, microbatches)
    return min((ahead + 1) / chunks, float(microbatches))


def microbatches_per_round(stages: int, microbatches: int) -> int:
    """How many microbatches a rank of several stages takes through one of them before it turns to the next."""
    return microbatches // max(1, microbatches // stages)


def _filling_divisor(schedule: str, chunks: int) -> float:
    return {"interleaved": float(chunks), "zero-bubble": 3.0 * chunks}.get(schedule, 1.0)


def check_schedule(schedule: str, stages: int, microbatches: int, chunks: int) -> None:
    """Raises ``ValueError`` unless there is such a schedule of at least one stage, microbatch and chunk."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: known are {', '.join(SCHEDULES)}")
    if min(stages, microbatches, chunks) < 1:
        raise ValueError(
            f"{stages} stages, {microbatches} microbatches, {chunks} chunks: all must be at least 1"
        )
