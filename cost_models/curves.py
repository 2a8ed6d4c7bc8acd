"""The curves that profiles carry: each turns a size into seconds, and says where its numbers come from."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "CAUSAL_SHARE",
    "AttentionCurve",
    "AttentionRates",
    "AttentionTiles",
    "CollectiveCurve",
    "CollectiveTable",
    "MatmulCurve",
    "MemoryCurve",
    "PackedProducts",
    "interpolated",
]


USUAL_SEQ = 1024
"""Keys of attention of which nobody knows the length."""
CAUSAL_SHARE = 0.75
"""Below this share of all pairs of a query and a key, attention is masked."""


def interpolated(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """``ys`` at ``x``, linear between the points of ascending ``xs`` and constant outside them."""
    if x <= xs[0]:
        return ys[0]
    for left in range(len(xs) - 1):
        if x <= xs[left + 1]:
            weight = (x - xs[left]) / (xs[left + 1] - xs[left])
            return ys[left] + weight * (ys[left + 1] - ys[left])
    return ys[-1]


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """A kernel bound by memory: a fixed part, and bytes over the bandwidth it reaches."""

    fixed_s: float
    """What one kernel costs beyond its bytes."""
    bytes_per_s: float
    """Bandwidth on tensors much larger than the caches."""
    source: str

    def seconds(self, bytes_moved: float, kernels: int) -> float:
        """Seconds of ``kernels`` kernels that read and write ``bytes_moved`` bytes together."""
        return kernels * self.fixed_s + bytes_moved / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class AttentionCurve:
    """Fused attention: a fixed part, and FLOPs over a rate that grows with the sequence."""

    fixed_s: float
    seq: tuple[float, ...]
    """Sequence lengths at which the rate is known, ascending."""
    flops_per_s: tuple[float, ...]
    """Rate at each of these lengths, for ``head_dim``; a causal mask halves the FLOPs, not the rate."""
    head_dim: int
    wide_gain: float
    """Rate at twice ``head_dim`` or more, relative: softmax costs the same for every width of heads."""
    source: str

    @property
    def usual_shape(self) -> tuple[int, int]:
        """(keys, width of heads) where nobody knows them."""
        return round(self.seq[0]), self.head_dim

    def seconds(self, flops: float, *, seq: int, head_dim: int, kernels: int, queries: float = 0.0) -> float:
        """Seconds for ``flops`` on sequences of ``seq`` keys with heads of ``head_dim``, however many."""
        lengths = tuple(math.log(length) for length in self.seq)
        rate = interpolated(math.log(max(seq, 1)), lengths, self.flops_per_s)
        return kernels * self.fixed_s + flops / (rate * self._head_dim_factor(head_dim))

    def _head_dim_factor(self, head_dim: int) -> float:
        """Rate of ``head_dim`` relative to the curve's own width."""
        doublings = min(math.log2(head_dim / self.head_dim), 1.0)
        return math.pow(2.0 if doublings < 0 else self.wide_gain, doublings)


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Fused attention as tiles of queries over multiprocessors, for each measured width of heads.

    ``fixed + flops·(1 + diagonal/seq)/rate + queries·per_query + seq·per_key``: a causal mask computes the tiles
    on the diagonal whole; each row of queries is loaded, finished and stored once; and the multiprocessor that
    is the last to finish has one tile against all keys to itself (list scheduling: Graham, 1969).
    """

    head_dim: tuple[int, ...]
    """Widths that were measured, ascending."""
    fixed_s: tuple[float, ...]
    flops_per_s: tuple[float, ...]
    diagonal: tuple[float, ...]
    """Keys beyond the diagonal that a causal mask computes for a query on average, doubled."""
    query_s: tuple[float, ...]
    """Per row of queries of one head."""
    key_s: tuple[float, ...]
    """Per key of a sequence: the longest tile."""
    flops_per_pair: float
    """Per query, key and element of a head: 4 forward, 10 backward."""
    source: str

    @property
    def usual_shape(self) -> tuple[int, int]:
        """(keys, width of heads) where nobody knows them."""
        return USUAL_SEQ, self.head_dim[0]

    def seconds(self, flops: float, *, seq: int, head_dim: int, kernels: int, queries: float = 0.0) -> float:
        """Seconds for ``flops`` on ``queries`` rows (of all heads) against ``seq`` keys each."""
        queries = queries or 2.0 * flops / (self.flops_per_pair * head_dim * seq)
        pairs = flops / (self.flops_per_pair * head_dim)
        is_causal = pairs < CAUSAL_SHARE * queries * seq
        width = math.log2(max(head_dim, 1))
        widths = tuple(math.log2(each) for each in self.head_dim)

        def at(column: tuple[float, ...]) -> float:
            return interpolated(width, widths, column)

        rate = at(self.flops_per_s) * min(head_dim / self.head_dim[0], 1.0)
        whole = flops * (1.0 + (at(self.diagonal) / seq if is_causal else 0.0))
        rows_s = queries * at(self.query_s) + seq * at(self.key_s)
        return kernels * at(self.fixed_s) + whole / rate + rows_s


@dataclass(frozen=True, slots=True)
class AttentionRates:
    """Fused attention on a CPU: FLOPs over a rate measured by width of heads and number of keys.

    How many queries a block has there depends on the sequence, so the rate is no smooth function of it.
    """

    head_dim: tuple[int, ...]
    """Widths that were measured, ascending."""
    seq: tuple[int, ...]
    """Keys that were measured, ascending."""
    flops_per_s: tuple[tuple[float, ...], ...]
    """For each width, by ``seq``; a causal mask halves the FLOPs, not the rate."""
    source: str

    @property
    def usual_shape(self) -> tuple[int, int]:
        """(keys, width of heads) where nobody knows them."""
        return self.seq[len(self.seq) // 2], self.head_dim[len(self.head_dim) // 2]

    def seconds(self, flops: float, *, seq: int, head_dim: int, kernels: int, queries: float = 0.0) -> float:
        """Seconds for ``flops`` on sequences of ``seq`` keys with heads of ``head_dim``, however many."""
        lengths = tuple(math.log(length) for length in self.seq)
        widths = tuple(math.log(width) for width in self.head_dim)
        rates = tuple(interpolated(math.log(max(seq, 1)), lengths, row) for row in self.flops_per_s)
        return flops / interpolated(math.log(max(head_dim, 1)), widths, rates)


@dataclass(frozen=True, slots=True)
class CollectiveTable:
    """One collective on one kind of link as it was measured: seconds by bytes on the wire, for some numbers of ranks.

    For links whose seconds follow no simple curve: gloo's, where caches, sockets and the pages of large buffers
    matter. Between two sizes the logarithms are interpolated; beyond the last its rate goes on.
    """

    ranks: tuple[int, ...]
    wire_bytes: tuple[tuple[float, ...], ...]
    """For each number of ranks, ascending."""
    seconds_s: tuple[tuple[float, ...], ...]
    source: str

    def seconds(self, wire_bytes: float, ranks: int) -> float:
        """Seconds when each of ``ranks`` ranks sends ``wire_bytes``."""
        known = tuple(math.log2(count) for count in self.ranks)
        rows = zip(self.wire_bytes, self.seconds_s, strict=True)
        return interpolated(math.log2(ranks), known, tuple(_between(wire_bytes, *row) for row in rows))


def _between(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """``ys`` at ``x``, straight in logarithms, the first below the table and proportional above it."""
    if x >= xs[-1]:
        return ys[-1] * x / xs[-1]
    logs = tuple(tuple(map(math.log, each)) for each in (xs, ys))
    return math.exp(interpolated(math.log(max(x, 1.0)), *logs))


@dataclass(frozen=True, slots=True)
class CollectiveCurve:
    """One collective on one kind of link: ``latency + ramp·w/(w + ramp_bytes) + w/bandwidth``.

    ``w`` is what each rank puts on the wire (ring: (n−1)/n of the tensor, twice that for an all-reduce).
    The ramp is the loss while the library changes from its low-latency to its full-bandwidth protocol.
    One entry per number of ranks that was measured.
    """

    ranks: tuple[int, ...]
    latency_s: tuple[float, ...]
    ramp_s: tuple[float, ...]
    ramp_bytes: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    source: str

    def seconds(self, wire_bytes: float, ranks: int) -> float:
        """Seconds when each of ``ranks`` ranks sends ``wire_bytes``."""
        at = math.log2(ranks)
        known = tuple(math.log2(count) for count in self.ranks)
        ramp = interpolated(at, known, self.ramp_s)
        half = interpolated(at, known, self.ramp_bytes)
        rate = interpolated(at, known, self.bytes_per_s)
        return self._latency_s(ranks) + ramp * wire_bytes / (wire_bytes + half) + wire_bytes / rate

    def _latency_s(self, ranks: int) -> float:
        """Latency grows with the steps of the ring beyond the largest group that was measured."""
        last = self.ranks[-1]
        if ranks <= last:
            return interpolated(float(ranks), tuple(map(float, self.ranks)), self.latency_s)
        return self.latency_s[-1] * (ranks - 1) / (last - 1)


@dataclass(frozen=True, slots=True)
class MatmulCurve:
    """Matrix products of one dtype, by tiles over multiprocessors.

    ``m × n`` is cut into tiles, which ``units`` multiprocessors take in waves; one tile of ``k`` steps takes
    ``2·tile_m·tile_n·(k + k_overhead)`` FLOPs at ``flops_per_s / units``; the fastest tile shape is
    taken. A product can be no faster than its operands are read: ``(tiles⁴ + memory⁴)^¼``.
    """

    fixed_s: float
    """What one product costs beyond its waves and bytes."""
    flops_per_s: float
    """Rate in a burst of a product large enough to hide everything else."""
    units: int
    """Multiprocessors; 1 where products are not tiled over any."""
    tiles: tuple[tuple[int, int], ...]
    """Tile shapes (m, n), each tried both ways."""
    tile_efficiency: tuple[float, ...]
    """Rate of each tile shape relative to ``flops_per_s``."""
    k_overhead: float
    """Steps of k lost to filling and draining one tile."""
    wave_split: float
    """How far a last, partial wave spreads over idle units (stream-K, split-K): 0 not at all, 1 fully."""
    memory_bytes_per_s: float
    """Bandwidth at which operands arrive."""
    step_slowdown_flops: tuple[float, ...]
    """Product sizes (FLOPs) at which ``step_slowdown`` is known, ascending."""
    step_slowdown: tuple[float, ...]
    """How much slower than in a burst a product runs inside a training step: power limit and cold caches."""
    source: str

    def burst_s(self, m: int, n: int, k: int, *, batch: int = 1, element_bytes: int = 2) -> float:
        """Seconds of ``batch`` products ``m × k @ k × n`` in a hot loop."""
        waves_s = min(
            self._waves_s(batch * math.ceil(m / rows) * math.ceil(n / columns), rows * columns, k)
            / efficiency
            for tile, efficiency in zip(self.tiles, self.tile_efficiency, strict=True)
            for rows, columns in (tile, tile[::-1])
        )
        memory_s = element_bytes * batch * (m * k + k * n + m * n) / self.memory_bytes_per_s
        return self.fixed_s + math.sqrt(math.hypot(waves_s**2, memory_s**2))

    def seconds(self, m: int, n: int, k: int, *, batch: int = 1, element_bytes: int = 2) -> float:
        """Seconds of ``batch`` products ``m × k @ k × n`` inside a training step."""
        flops = max(2.0 * batch * m * n * k, 1.0)
        sizes = tuple(math.log(size) for size in self.step_slowdown_flops)
        slowdown = interpolated(math.log(flops), sizes, self.step_slowdown)
        return self.burst_s(m, n, k, batch=batch, element_bytes=element_bytes) * slowdown

    def _waves_s(self, tiles: int, tile_elements: int, k: int) -> float:
        ideal = max(tiles / self.units, 1.0)
        waves = self.wave_split * ideal + (1.0 - self.wave_split) * math.ceil(tiles / self.units)
        return waves * 2.0 * tile_elements * (k + self.k_overhead) * self.units / self.flops_per_s


@dataclass(frozen=True, slots=True)
class PackedProducts:
    """Matrix products of one dtype on a CPU: ``fixed + FLOPs/rate + elements·size/bandwidth``.

    Libraries copy both operands into blocks that fit a cache before they multiply, and add to the result block by
    block (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008), so elements of operands
    and result cost time of their own beside the FLOPs.
    """

    fixed_s: float
    """What one product costs beyond its FLOPs and elements."""
    flops_per_s: float
    bytes_per_s: float
    """Bandwidth at which elements are packed and stored."""
    source: str

    def seconds(self, m: int, n: int, k: int, *, batch: int = 1, element_bytes: int = 2) -> float:
        """Seconds of ``batch`` products ``m × k @ k × n``."""
        packed_bytes = element_bytes * (m * k + k * n + m * n)
        each_s = self.fixed_s + 2.0 * m * n * k / self.flops_per_s + packed_bytes / self.bytes_per_s
        return batch * each_s
