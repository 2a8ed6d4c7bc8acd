"""Seconds of one operator on one device: the profile's curves where it has them, else the roofline."""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.curves import MatmulCurve, MemoryCurve
from cost_models.device import Device
from cost_models.dtypes import dtype_bytes

__all__ = ["FAMILIES", "Price", "Work", "host_s", "operator_s", "roofline_s"]

FAMILIES = (
    "matmul",
    "attention",
    "attention_backward",
    "norm",
    "norm_backward",
    "elementwise",
    "activation",
    "rotary",
    "reduction",
    "embedding",
    "embedding_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "log_softmax",
    "log_softmax_backward",
    "strided",
    "join",
    "copy",
    "optimizer",
    "free",
)
"""``log_softmax``: a loss run operator by operator; ``strided``: pointwise on a broadcast tensor or on mixed
dtypes, operator by operator; ``join``: so are parts joined; ``activation``: GELU and other pointwise functions
with real arithmetic; ``free``: views and metadata."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one operator does on one device, in its local shapes.

    Forward and backward are two pieces of work; a fused chain of elementwise operators is one.
    """

    family: str
    """One of ``FAMILIES``."""
    flops: float
    """Operations that the kernels perform: causal attention counts half, what is recomputed counts again."""
    read_bytes: float
    written_bytes: float
    dtype: str
    """Dtype of the computation, torch's name."""
    kernels: int = 1
    """Kernels launched; what a compiled chain fuses is one."""
    m: int = 0
    """Matrix product: ``batch`` times ``m × k @ k × n``; unknown when 0."""
    n: int = 0
    k: int = 0
    batch: int = 1
    heads: int = 0
    """Attention: heads on this device."""
    seq: int = 0
    """Attention: number of keys; unknown when 0."""
    head_dim: int = 0
    queries: int = 0
    """Attention: rows of queries of all heads; unknown when 0."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family {self.family!r}: known are {', '.join(FAMILIES)}")
        if min(self.flops, self.read_bytes, self.written_bytes, self.kernels) < 0:
            raise ValueError(f"negative work: {self}")

    @property
    def moved_bytes(self) -> float:
        """Bytes read and written together."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds, and how they are known."""

    seconds: float
    provenance: str
    """``measured``, ``fitted`` (a curve through measurements) or ``roofline`` (peak rates only)."""


def operator_s(work: Work, device: Device) -> Price:
    """Device time of ``work``, kernel launches included, host time excluded (``host_s``)."""
    if work.family == "free" or (work.kernels == 0 and not work.moved_bytes):
        return Price(0.0, "measured")
    if work.family == "matmul":
        return _matmul_price(work, device)
    if work.family.startswith("attention"):
        return _attention_price(work, device)
    return _memory_price(work, device)


def host_s(work: Work, device: Device) -> float:
    """Host time to issue ``work`` in eager mode. Runs beside the device, unless the device is the host."""
    return work.kernels * device.host_dispatch_s if work.family != "free" else 0.0


def roofline_s(work: Work, device: Device) -> float:
    """The larger of FLOPs over peak and bytes over bandwidth (Williams, Waterman and Patterson, 2009)."""
    return max(work.flops / device.peak(work.dtype), work.moved_bytes / device.memory_bytes_per_s)


def _roofline_price(work: Work, device: Device) -> Price:
    return Price(work.kernels * device.kernel_launch_s + roofline_s(work, device), "roofline")


def _matmul_price(work: Work, device: Device) -> Price:
    curve = _matmul_curve(work.dtype, device)
    if curve is None:
        return _roofline_price(work, device)
    m, n, k = _product_shape(work)
    seconds = curve.seconds(m, n, k, batch=work.batch, element_bytes=dtype_bytes(work.dtype))
    return Price(seconds + (work.kernels - 1) * device.kernel_launch_s, "fitted")


def _matmul_curve(dtype: str, device: Device) -> MatmulCurve | None:
    """The two 16-bit types run at the same rate on tensor cores, where the device has both."""
    twins = {"float16": "bfloat16", "bfloat16": "float16"}
    if dtype in device.matmul:
        return device.matmul[dtype]
    twin = twins.get(dtype)
    if twin is None or device.peak(dtype) != device.peak(twin):
        return None
    return device.matmul.get(twin)


def _product_shape(work: Work) -> tuple[int, int, int]:
    """The product's m, n and k; a cube of equal FLOPs where they are unknown."""
    if work.m and work.n and work.k:
        return work.m, work.n, work.k
    side = max(round((work.flops / (2.0 * work.batch)) ** (1 / 3)), 1)
    return side, side, side


def _attention_price(work: Work, device: Device) -> Price:
    curve = device.attention.get(work.family)
    is_sixteen_bit = work.dtype in ("bfloat16", "float16")
    if curve is None or not (is_sixteen_bit or device.kind == "cpu"):
        return _roofline_price(work, device)
    usual_seq, usual_head_dim = curve.usual_shape
    head_dim = work.head_dim or usual_head_dim
    seq = work.seq or usual_seq
    fused_s = curve.seconds(
        work.flops, seq=seq, head_dim=head_dim, kernels=work.kernels, queries=work.queries
    )
    memory_s = work.moved_bytes / device.memory_bytes_per_s
    return Price(max(fused_s, memory_s), "fitted")


def _memory_price(work: Work, device: Device) -> Price:
    curve = _memory_curve(work.family, device)
    if curve is None:
        return _roofline_price(work, device)
    return Price(curve.seconds(work.moved_bytes, work.kernels), "fitted")


def _memory_curve(family: str, device: Device) -> MemoryCurve | None:
    """The family's own curve, else its forward's, else the plain elementwise one."""
    for name in (family, family.removesuffix("_backward"), "elementwise"):
        if name in device.families:
            return device.families[name]
    return None
