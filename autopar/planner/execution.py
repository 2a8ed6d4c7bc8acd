"""How a program runs its operators, whatever the mesh: compiled or not, recomputed or kept, in how many slices."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RECOMPUTE_LEVELS", "Execution"]

RECOMPUTE_LEVELS = ("none", "selective", "full")
"""From the fastest to the leanest."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Choices that are the same for all operators of a stage."""

    is_compiled: bool = False
    """Each block type goes through ``torch.compile``."""
    recompute: str = "none"
    """What blocks compute again in the backward: ``none``; ``selective``: all but products, attention and
    reductions over ranks; ``full``: all of it."""
    microbatches: int = 1
    """Slices of the batch that run one after the other."""
    zero: int = 3
    """What ``shard`` axes do: 1 gathers parameters once a step and scatters the summed gradients once, 2
    scatters them with every microbatch, 3 gathers them again for every use."""
    stage_ranks: int = 1
    """Ranks of the pipeline: outermost axis of the mesh, each with an equal submesh."""

    @property
    def waits(self) -> bool:
        """True for a pipeline that only one of its ranks works on at any time, for want of microbatches."""
        return self.stage_ranks > 1 and self.microbatches == 1
