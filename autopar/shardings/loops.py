"""The loop nest of one operator: which factor each dim of each operand and result belongs to.

This is all that a sharding rule says. From it follow every strategy, and every layout with its gradient:

- a factor that appears in a result is *free*: sharding it shards that result;
- a factor that does not is *reduced*: sharding it leaves the result a partial sum;
- a factor marked *whole* must not be sharded;
- a factor marked *internal* is reduced by the operator itself, with collectives of its own;
- a factor marked *unblocked* is sharded in one run only: the operator counts positions along it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Dim", "DimFactor", "Loops"]


@dataclass(frozen=True, slots=True)
class DimFactor:
    """A factor as one dim holds it."""

    name: str
    blocks: int = 1
    """The dim is ``blocks`` copies of the factor: sharding the factor shards the dim in as many blocks."""


Dim = tuple[DimFactor, ...]
"""The factors a dim is made of, outermost first; empty where nothing may be sharded."""


@dataclass(frozen=True, slots=True)
class Loops:
    """The factors of one operator on its own shapes."""

    operands: tuple[tuple[Dim, ...], ...]
    """One entry per tensor argument, in the order in which the arguments mention them."""
    results: tuple[tuple[Dim, ...], ...]
    """One entry per result."""
    whole: frozenset[str] = frozenset()
    internal: frozenset[str] = frozenset()
    unblocked: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    """Sets of operands that may be partial sums together; the results are then partial sums too."""
    is_mean: bool = False
    """The reduction divides by the reduced size: a shard's mean is divided by the number of shards."""
    is_heavy: bool = True
    """Sharding this operator pays for itself; False for views and the like, which only pass it on."""

    def shardable(self) -> tuple[str, ...]:
        """Names of the factors that a strategy may shard, in order of appearance."""
        names: dict[str, None] = {}
        for dims in (*self.results, *self.operands):
            for dim in dims:
                names.update((factor.name, None) for factor in dim)
        return tuple(name for name in names if name not in self.whole)
