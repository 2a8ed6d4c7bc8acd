"""Whether a plan does what is pinned: whatever the search is made of, no pin is lost in it."""

from __future__ import annotations

import re
from collections import Counter

from autopar.planner.mesh import SHARD
from autopar.planner.pins import Pins
from autopar.shardings.sharded import ShardedGraph

__all__ = ["broken_pins"]


def broken_pins(pins: Pins, sharded: ShardedGraph, microbatch: int) -> tuple[str, ...]:
    """Keys of the pins that a plan does otherwise; ``microbatch`` is what one data rank of it takes at a time."""
    sizes: Counter[str] = Counter()
    for axis in sharded.axes:
        role = re.sub(r"_\d+$", "", axis.name)
        sizes[role] = max(sizes[role], 1) * axis.size
    is_sharded = any(axis.kind == SHARD for axis in sharded.axes)
    done: dict[str, set[object]] = {role: {max(sizes[role], 1)} for role in pins.sizes}
    done |= {
        "pp": {sharded.stage_ranks},
        "zero": {stage.zero if is_sharded else 0 for stage in sharded.stages},
        "recompute": {stage.recompute for stage in sharded.stages},
        "microbatch": {microbatch},
        "schedule": {sharded.schedule},
        "chunks": {len(sharded.stages) // sharded.stage_ranks},
    }
    return tuple(key for key, value in pins.items.items() if done[key] != {value})
