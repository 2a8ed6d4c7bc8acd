"""Every way to split a cluster into pipeline, data, context and tensor ranks, with what it would roughly take.

Data parallelism cuts the batch as microbatches do, only in space: so what a device computes depends on the tensor
and context ranks and on how many sequences it takes at a time, and on nothing else. The strategies of operators
are therefore worked out once for each of these few *kernels* (with the same integer program that plans are made
of, a weight sharded wherever its sizes allow), and the thousands of ways to arrange them on a cluster are summed
up in closed form. The best of them are then planned exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.labels import BATCH, SEQUENCE
from autopar.planner.mesh import MODEL, REPLICATE, SHARD, MeshAxis
from autopar.planner.pins import Pins
from autopar.planner.schedules import schedules
from autopar.planner.splits import Split, divisors, splits
from cost_models.cluster import Cluster

__all__ = ["Chain", "Shape", "has_schedule", "shapes"]

ROUNDS = (1, 2, 4, 8, 16, 32)
"""Microbatches per pipeline rank that are tried; powers of two without one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Ranks of every kind, and the execution."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    execution: Execution

    @property
    def data_ranks(self) -> int:
        return self.dp_replicate * self.dp_shard

    @property
    def compute(self) -> tuple[int, int, int, int, str]:
        """What all shapes have in common whose devices compute the same; they differ in data-parallel traffic."""
        return (self.pp, self.cp, self.tp, self.execution.microbatches, self.execution.recompute)

    def axes(self, pins: Pins) -> tuple[MeshAxis, ...]:
        """The mesh of one stage, outermost axis first.

        On tensor ranks operators are free, unless these are pinned or the ranks may not become others of a
        pinned kind.
        """
        rests_sharded = self.dp_shard > 1 or self.execution.zero > 0
        axes = (
            MeshAxis(self.dp_replicate, REPLICATE, "dp_replicate", BATCH),
            MeshAxis(self.dp_shard, SHARD, "dp_shard", BATCH),
            MeshAxis(self.cp, SHARD if rests_sharded else REPLICATE, "cp", SEQUENCE),
            MeshAxis(self.tp, MODEL, "tp"),
        )
        named = {*pins.sizes, *(["tp"] if {"dp_replicate", "cp"} & pins.sizes.keys() else [])}
        return tuple(axis if axis.role in named else replace(axis, role="") for axis in axes if axis.size > 1)

    def sequences(self, batch: int) -> int:
        """Sequences that a device takes at a time."""
        return batch // (self.data_ranks * self.execution.microbatches)


Chain = tuple[Shape, ...]
"""Shapes of the same ranks and microbatches, ever leaner and ever slower: once one fits, the others need not."""


def shapes(
    cluster: Cluster, batch: int, blocks: int, pins: Pins, *, is_compiled: bool, is_thorough: bool = False
) -> Iterator[Chain]:
    """Every shape that the pins allow: whole sequences for every device, at most a stage per block.

    Those that are ``is_thorough`` only are hopeless beside the others, but pins may leave nothing else.
    """
    levels = (pins.recompute,) if pins.recompute else RECOMPUTE_LEVELS
    found = splits(cluster.devices, pins) if is_thorough else _usual_splits(cluster, batch, blocks, pins)
    for split in found:
        if not _suits(split, batch, pins):
            continue
        ranks = (split.pp, split.dp_replicate, split.dp_shard, split.cp, split.tp)
        for count in _counts(batch // split.data_ranks, split.pp, pins, is_thorough=is_thorough):
            for recompute in levels:
                chain = tuple(
                    Shape(*ranks, Execution(is_compiled, recompute, count, zero, split.pp))
                    for zero in _zero_levels(split.dp_shard, split.cp, count, pins)
                )
                if chain:
                    yield chain


def has_schedule(shape: Shape, pins: Pins, segments: int) -> bool:
    """True when some schedule runs the shape's microbatches on stages of so many segments."""
    if shape.pp == 1:
        return True
    return any(schedules(pins, shape.pp, shape.execution.microbatches, segments))


def _suits(split: Split, batch: int, pins: Pins) -> bool:
    """True for splits that divide the batch, have the stages and replicas that pins want, and no others."""
    usual = 1 if pins.zero else split.dp_replicate
    is_as_pinned = split.dp_replicate == pins.sizes.get("dp_replicate", usual)
    return is_as_pinned and batch % split.data_ranks == 0 and (split.pp > 1 or not pins.needs_stages)


def _usual_splits(cluster: Cluster, batch: int, blocks: int, pins: Pins) -> Iterator[Split]:
    """Splits with at most a stage per block, tensor ranks within a node, and no more context ranks than need be."""
    devices = cluster.devices
    for pp in _sizes(devices, pins.pp, most=blocks):
        for tp in _sizes(devices // pp, pins.sizes.get("tp"), most=_widest(cluster)):
            rest = devices // (pp * tp)
            for cp in _context_sizes(rest, batch, pins):
                for dp_shard in _sizes(rest // cp, pins.sizes.get("dp_shard"), most=rest):
                    yield Split(pp, rest // (cp * dp_shard), dp_shard, cp, tp)


def _widest(cluster: Cluster) -> int:
    """Tensor ranks stay within a node, unless nodes have one device."""
    return max(cluster.devices_per_node, 8) if cluster.devices_per_node > 1 else cluster.devices


def _context_sizes(ranks: int, batch: int, pins: Pins) -> Iterator[int]:
    """As few context ranks as leave a sequence for every data rank, and twice as many; one where batches are large."""
    if "cp" in pins.sizes:
        yield from _sizes(ranks, pins.sizes["cp"], most=ranks)
        return
    legal = [size for size in divisors(ranks) if batch % (ranks // size) == 0]
    yield from legal[:2] if legal and legal[0] > 1 else legal[:1]


def _sizes(devices: int, pinned: int | None, *, most: int) -> Iterator[int]:
    if pinned is not None:
        yield from (pinned,) if devices % pinned == 0 else ()
        return
    yield from (size for size in divisors(devices) if size <= max(most, 1))


def _counts(sequences: int, pp: int, pins: Pins, *, is_thorough: bool) -> list[int]:
    """Numbers of microbatches that leave whole sequences, where a data rank has ``sequences`` in all."""
    if pins.microbatch is not None:
        return [sequences // pins.microbatch] if sequences % pins.microbatch == 0 else []
    wanted = {rounds * pp for rounds in ROUNDS} | {sequences}
    found = divisors(sequences)
    if is_thorough:
        return found
    if pp == 1:
        return [count for count in found if count & (count - 1) == 0 or count == sequences]
    return [count for count in found if count in wanted]


def _zero_levels(dp_shard: int, cp: int, count: int, pins: Pins) -> tuple[int, ...]:
    """Gathering once a step saves traffic over many microbatches, and holds whole parameters."""
    if dp_shard == 1 and cp == 1:
        return (0,) if not pins.zero else ()
    levels = (1, 2, 3) if count > 1 else (2, 3)
    if dp_shard == 1:
        levels = (0, *levels)
    return tuple(level for level in levels if pins.zero in (None, level)) or (
        (pins.zero,) if pins.zero and count == 1 else ()
    )
