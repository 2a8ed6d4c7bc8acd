"""Usage of one node over time, as disjoint ranges of time points with one usage per strategy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.problem import FloatArray, IntArray

__all__ = ["Load", "disjoint", "joined", "reindexed", "rises_and_drops"]


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What a node holds under each strategy, in L ranges of time points."""

    starts: IntArray
    """(L,) first time point of each range."""
    ends: IntArray
    """(L,) one past the last."""
    usages: FloatArray
    """(L, S) usage of each strategy in each range; ranges that overlap add up."""

    def __bool__(self) -> bool:
        return self.starts.size > 0

    def least_in_ranges(self, values: FloatArray) -> FloatArray:
        """(L,) the least of some values per time point in each range."""
        bounds = np.stack([self.starts, self.ends], axis=1).ravel()
        least: FloatArray = np.minimum.reduceat(np.append(values, np.inf), bounds)[::2]
        return least


def joined(left: Load, right: Load) -> Load:
    """Both loads together."""
    return Load(*(np.concatenate(p) for p in zip(_arrays(left), _arrays(right), strict=True)))


def disjoint(load: Load) -> Load:
    """The same load in sorted ranges that do not overlap, neighbours with equal usages as one."""
    if load.starts.size == 1:
        return load if load.usages.any() else Load(load.starts[:0], load.ends[:0], load.usages[:0])
    times = np.unique(np.concatenate([load.starts, load.ends]))
    change = np.zeros((times.size, load.usages.shape[1]))
    np.add.at(change, np.searchsorted(times, load.starts), load.usages)
    np.subtract.at(change, np.searchsorted(times, load.ends), load.usages)
    usages = np.maximum(np.cumsum(change, axis=0)[:-1], 0.0)  # rounding can leave tiny negatives
    is_new = np.append(True, (usages[1:] != usages[:-1]).any(axis=1))[: usages.shape[0]]
    starts, ends = times[:-1][is_new], np.append(times[:-1][is_new][1:], times[-1:])
    is_held = usages[is_new].any(axis=1)
    return Load(starts[is_held], ends[is_held], usages[is_new][is_held])


def reindexed(load: Load, index: IntArray) -> Load:
    """The load on other time points: point t becomes ``index[t]``; empty ranges are dropped."""
    starts, ends = index[load.starts], index[load.ends]
    is_live = starts < ends
    return Load(starts[is_live], ends[is_live], load.usages[is_live])


def rises_and_drops(load: Load) -> tuple[IntArray, IntArray]:
    """Time points at which some strategy holds more, and less, than just before; ranges disjoint."""
    follows = np.append(False, load.starts[1:] == load.ends[:-1])
    before = np.where(follows[:, None], np.roll(load.usages, 1, axis=0), 0.0)
    rises = load.starts[(load.usages > before).any(axis=1)]
    drops = load.starts[(load.usages < before).any(axis=1)]
    return rises, np.concatenate([drops, load.ends[~np.append(follows[1:], False)]])


def _arrays(load: Load) -> tuple[IntArray, IntArray, FloatArray]:
    return load.starts, load.ends, load.usages
