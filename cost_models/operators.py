"""Seconds of one operator on one device: the profile's curves where it has them, else the roofline."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.curves import MatmulCurve, MemoryCurve, PackedProducts
from cost_models.device import Device
from cost_models.dtypes import dtype_bytes

__all__ = ["FAMILIES", "FRESH_FROM_BYTES", "Price", "Work", "operator_s", "roofline_s"]

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
    "rms_norm",
    "rms_norm_backward",
    "gelu",
    "copy",
    "optimizer",
    "free",
)
"""``log_softmax``: a loss run operator by operator; ``strided``: pointwise on a broadcast tensor or on mixed
dtypes, operator by operator; ``join``: so are parts joined; ``rms_norm``, ``gelu``: so are these computed;
``activation``: GELU and other pointwise functions
with real arithmetic; ``free``: views and metadata."""

FRESH_FROM_BYTES = 2**25
"""Tensors of a CPU from which on their pages are new each time: glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64 bits."""
_USUAL = {"rms_norm": "norm", "rms_norm_backward": "norm_backward", "gelu": "activation"}
"""The family of operators whose own one a profile does not know."""
_IN_PLACE = ("optimizer", "free")


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
    """Device time of ``work``, kernel launches included; on a CPU, where both are one, host time too."""
    if work.family == "free" or (work.kernels == 0 and not work.moved_bytes):
        return Price(0.0, "measured")
    price = _price(work, device)
    return replace(price, seconds=price.seconds + _fresh_s(work, device))


def _price(work: Work, device: Device) -> Price:
    """Without what new pages take."""
    if work.family == "matmul":
        return _matmul_price(work, device)
    if work.family.startswith("attention"):
        return _attention_price(work, device)
    return _memory_price(work, device)


def _fresh_s(work: Work, device: Device) -> float:
    """What the system takes to hand out the pages of a large result, where it does so anew each time."""
    if not device.fresh_bytes_per_s or work.family in _IN_PLACE:
        return 0.0
    written = work.written_bytes / max(work.kernels, 1)
    if work.family == "matmul" and work.m and work.n:
        written = float(dtype_bytes(work.dtype) * work.batch * work.m * work.n / max(work.kernels, 1))
    is_fresh = written >= FRESH_FROM_BYTES
    return max(work.kernels, 1) * written / device.fresh_bytes_per_s if is_fresh else 0.0


def roofline_s(work: Work, device: Device) -> float:
    """The larger of FLOPs over peak and bytes over bandwidth (Williams, Waterman and Patterson, 2009)."""
    return max(work.flops / device.peak(work.dtype), work.moved_bytes / device.memory_bytes_per_s)


def _roofline_price(work: Work, device: Device) -> Price:
    kernel_s = device.kernel_launch_s + (device.host_dispatch_s if device.kind == "cpu" else 0.0)
    return Price(work.kernels * kernel_s + roofline_s(work, device), "roofline")


def _matmul_price(work: Work, device: Device) -> Price:
    curve = _matmul_curve(work.dtype, device)
    if curve is None:
        return _roofline_price(work, device)
    m, n, k = _product_shape(work)
    seconds = curve.seconds(m, n, k, batch=work.batch, element_bytes=dtype_bytes(work.dtype))
    return Price(seconds + (work.kernels - 1) * device.kernel_launch_s, "fitted")


def _matmul_curve(dtype: str, device: Device) -> MatmulCurve | PackedProducts | None:
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
    usual = _USUAL.get(family, family)
    for name in (family, usual, usual.removesuffix("_backward"), "elementwise"):
        if name in device.families:
            return device.families[name]
    return None
