"""What one operator computes and moves on one device, forward and backward, from its local shapes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from autopar.shardings.calls import Call
from autopar.shardings.rules.pointwise import POINTWISE
from autopar.shardings.rules.views import RULES as VIEWS
from cost_models.dtypes import dtype_bytes
from cost_models.operators import Work

__all__ = ["family_of", "works"]

Shape = tuple[int, ...]

_MATMULS = {
    "aten.linear.default",
    "aten.addmm.default",
    "aten.matmul.default",
    "aten.mm.default",
    "aten.bmm.default",
    "aten.baddbmm.default",
    "aten.einsum.default",
    "aten.outer.default",
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv3d.default",
}
_COPYING_VIEWS = {
    "aten.cat.default",
    "aten.concat.default",
    "aten.stack.default",
    "aten.pad.default",
    "aten.constant_pad_nd.default",
    "aten.roll.default",
    "aten.flip.default",
}
_NORMS = ("norm", "softmax")
_ACTIVATIONS = ("gelu", "silu", "tanh", "sigmoid", "exp", "pow", "sin", "cos", "erf", "softplus", "mish")
_FREE_POINTWISE = {"aten.alias.default", "aten.detach.default", "aten.to.device"}


def family_of(call: Call) -> str:
    """The cost family of an operator, a name that ``cost_models.operators`` knows."""
    target = call.operator.target
    name = target.split(".")[1]
    if target in _MATMULS:
        return "matmul"
    if name == "scaled_dot_product_attention":
        return "attention"
    if name == "embedding":
        return "embedding"
    if name == "cross_entropy_loss":
        return "cross_entropy"
    if target in _COPYING_VIEWS:
        return "copy"
    if target in VIEWS or target in _FREE_POINTWISE or _is_no_op_cast(call):
        return "free"
    if any(word in name for word in _NORMS):
        return "norm"
    if target.removeprefix("aten.") in POINTWISE:
        return "activation" if any(word in name for word in _ACTIVATIONS) else "elementwise"
    return "elementwise"


def _is_no_op_cast(call: Call) -> bool:
    name = call.operator.target
    return name.startswith("aten.to.") and bool(call.operands) and call.operands[0].dtype == call.result.dtype


def works(call: Call, operands: Sequence[Shape], results: Sequence[Shape]) -> tuple[Work, Work | None]:
    """Forward and backward work on local shapes; no backward where nothing needs a gradient."""
    family = family_of(call)
    dtype = call.result.dtype
    read = sum(_bytes(shape, value.dtype) for shape, value in zip(operands, call.operands, strict=True))
    written = sum(
        _bytes(shape, value.dtype)
        for shape, value in zip(results, call.results, strict=True)
        if value is not None
    )
    if family == "free":
        free = Work("free", 0.0, 0.0, 0.0, dtype)
        return free, None
    needs_gradient = [value.requires_grad for value in call.operands]
    if family == "matmul":
        return _matmul_works(call, operands, results, dtype, read, written, sum(needs_gradient[:2]))
    if family == "attention":
        return _attention_works(call, operands, dtype, read, written, any(needs_gradient))
    forward = Work(family, 5.0 * written, read, written, dtype)
    if family == "cross_entropy":
        rows = _bytes(operands[0], call.operands[0].dtype)
        forward = Work(family, 5.0 * rows, rows, rows, dtype)
    if not any(needs_gradient):
        return forward, None
    backward_family = {
        "norm": "norm_backward",
        "embedding": "embedding_backward",
        "cross_entropy": "cross_entropy_backward",
    }
    return forward, Work(backward_family.get(family, family), forward.flops, *_backward_bytes(forward), dtype)


def _backward_bytes(forward: Work) -> tuple[float, float]:
    """The backward reads the gradient and what was saved, and writes the operands' gradients."""
    return forward.written_bytes + forward.read_bytes, max(forward.read_bytes, forward.written_bytes)


def _matmul_works(
    call: Call,
    operands: Sequence[Shape],
    results: Sequence[Shape],
    dtype: str,
    read: float,
    written: float,
    gradients: int,
) -> tuple[Work, Work | None]:
    m, n, k, batch = _product(call, operands, results)
    flops = 2.0 * batch * m * n * k
    forward = Work("matmul", flops, read, written, dtype, 1, m, n, k, batch)
    if not gradients:
        return forward, None
    backward = Work(
        "matmul",
        gradients * flops,
        gradients * read,
        gradients * written,
        dtype,
        gradients,
        m,
        n,
        k,
        gradients * batch,
    )
    return forward, backward


def _product(call: Call, operands: Sequence[Shape], results: Sequence[Shape]) -> tuple[int, int, int, int]:
    """(m, n, k, batch) of the product behind a linear, matmul, convolution or einsum."""
    name = call.operator.target.split(".")[1]
    result = results[0]
    if name == "linear":
        return prod(operands[0][:-1]), operands[1][0], operands[1][1], 1
    if name == "addmm":
        return operands[1][0], result[-1], operands[1][1], 1
    if name in ("mm", "matmul", "bmm") and len(result) >= 2:
        shared = len(operands[1]) == 2
        rows = prod(result[:-1]) if shared else result[-2]
        return rows, result[-1], operands[0][-1], 1 if shared else prod(result[:-2])
    if name.startswith("conv"):
        return result[0] * prod(result[2:]), result[1], prod(operands[1][1:]), 1
    total = prod(operands[0]) * prod(operands[1])
    inner = max(round((total / max(prod(result), 1)) ** 0.5), 1)
    return max(prod(result[:-1]), 1), result[-1] if result else 1, inner, 1


def _attention_works(
    call: Call, operands: Sequence[Shape], dtype: str, read: float, written: float, needs_gradient: bool
) -> tuple[Work, Work | None]:
    """Two products over (query, key) pairs forward and five backward; a causal mask halves the pairs."""
    query, keys = operands[0], operands[1]
    heads = prod(query[:-2])
    pairs = float(query[-2] * keys[-2])
    if call.argument(5, "is_causal", False):
        # The shard with the last queries sees almost all keys: the slowest rank sets the pace.
        share = query[-2] / keys[-2]
        pairs *= 1.0 - share / 2.0
    flops = 4.0 * heads * pairs * query[-1]

    def work(family: str, times: float) -> Work:
        return Work(
            family,
            times * flops,
            times * read,
            times * written,
            dtype,
            heads=heads,
            seq=keys[-2],
            head_dim=query[-1],
            queries=heads * query[-2],
        )

    return work("attention", 1.0), work("attention_backward", 2.5) if needs_gradient else None


def _bytes(shape: Shape, dtype: str) -> int:
    return prod(shape) * dtype_bytes(dtype)
