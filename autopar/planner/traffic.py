"""What one operator moves through memory once its neighbours run beside it, fused with it or not."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Traffic"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which tensors one call reads and writes, by position; sizes follow from its strategy.

    Of what a group of fused operators moves, each member is charged what it brings in itself, so that the
    charges of all operators add up to the kernels that run.
    """

    family: str
    """Of the kernel that the call is part of: a name that ``cost_models.operators`` knows."""
    reads: tuple[int, ...] = ()
    """Operands read from memory in the forward."""
    writes: tuple[int, ...] = ()
    """Results written in the forward."""
    kernels: int = 0
    """Kernels of the forward that are charged to this call."""
    gradient_reads: tuple[tuple[int, int], ...] = ()
    """(result, how many pieces of its gradient the backward reads)."""
    saved_operands: tuple[int, ...] = ()
    """Operands that the backward reads again."""
    saved_results: tuple[int, ...] = ()
    gradient_writes: tuple[int, ...] = ()
    """Operands whose gradient the backward writes."""
    operand_gradient_reads: tuple[tuple[int, int], ...] = ()
    """(operand, pieces of its gradient from other readers that are added on the way)."""
    backward_kernels: int = 0
    sums: tuple[tuple[int, int], ...] = ()
    """(operand, additions of two pieces of its gradient that are kernels of their own)."""
    narrowed: tuple[int, ...] = ()
    """Operands whose gradient is made in the result's wider dtype and cast in a kernel of its own."""
    copied: tuple[int, ...] = ()
    """Operands whose gradient is laid out anew after it is made: where parts are joined before a product."""
    summed_bias: bool = False
    """The result's gradient is summed over all rows, for a bias."""
    weights: tuple[int, ...] = ()
    """Operands that are parameters, cast from their dtype at rest by kernels of their own."""
    runs_again: bool = False
    """The forward is repeated before the backward."""
    casts_again: bool = False
    """So are the casts of its weights."""
