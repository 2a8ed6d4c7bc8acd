"""What a generated program needs while it trains: torch, and this package."""

from autopar.runtime.attention import attention
from autopar.runtime.axis import Axis, axes_of
from autopar.runtime.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    shard,
    share_gradient,
    sum_gradient,
)
from autopar.runtime.cross_entropy import cross_entropy
from autopar.runtime.embedding import embedding

__all__ = [
    "Axis",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "attention",
    "axes_of",
    "cross_entropy",
    "embedding",
    "reduce_scatter",
    "shard",
    "share_gradient",
    "sum_gradient",
]
