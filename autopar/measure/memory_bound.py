"""Kernels bound by memory, compiled as a program's blocks are: norms, activations, rotary, sums, copies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from autopar.measure.cases import Case, Pass, differentiable, plain, repeats_for
from autopar.models.llama import rotate, rotations
from cost_models.operators import Work

__all__ = ["compiled", "memory_cases"]

SHAPES = ((2048, 1024), (8192, 2048), (16_384, 4096))
"""(tokens, width)."""
SMALL_SHAPES = ((256, 128), (512, 512))
"""For a CPU."""
HEAD_DIM = 64
NORM_EPS = 1e-5
MOST_REPEATS = 4
"""An autograd call takes the host about 0.1 ms."""

Function = Callable[..., Tensor]


def compiled(function: Function, device: torch.device) -> Function:
    """``function`` as Inductor compiles it for one shape on a GPU; as it is on a CPU."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def memory_cases(device: torch.device, *, is_quick: bool) -> list[Case]:
    """All families over the shapes, in the dtypes that a bfloat16 program meets them in."""
    shapes = SHAPES if device.type == "cuda" else SMALL_SHAPES
    chosen = shapes[1:2] if is_quick else shapes
    return [
        case
        for family in (_norms, _activations, _pointwise, _rotary)
        for shape in chosen
        for case in family(device, *shape)
    ]


def _norms(device: torch.device, tokens: int, width: int) -> Iterator[Case]:
    """From bfloat16, and from the float32 that autocast leaves on residuals; the result is bfloat16."""
    for source in (torch.bfloat16, torch.float32):
        elements, size = tokens * width, source.itemsize
        forward = Work("norm", 0.0, size * elements, 2 * elements, "bfloat16")
        backward = Work("norm_backward", 0.0, (2 + size) * elements, size * elements, "bfloat16")
        for name, function, weights in (("rms norm", _rms_norm, 1), ("layer norm", _layer_norm, 2)):
            yield differentiable(
                f"{name} {_name(source)} {tokens}×{width}",
                compiled(function, device),
                functools.partial(_norm_inputs, device, source, tokens, width, weights),
                forward=forward,
                backward=backward,
                repeats=repeats_for(forward, MOST_REPEATS),
            )


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPS).to(torch.bfloat16)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPS).to(torch.bfloat16)


def _norm_inputs(
    device: torch.device, source: torch.dtype, tokens: int, width: int, weights: int
) -> tuple[Tensor, ...]:
    x = torch.randn(tokens, width, device=device, dtype=source, requires_grad=True)
    return x, *(torch.ones(width, device=device, dtype=source, requires_grad=True) for _ in range(weights))


def _activations(device: torch.device, tokens: int, width: int) -> Iterator[Case]:
    """SwiGLU on two tensors and GELU on one, at a feed-forward's width."""
    ffn = 2 * width
    yield _activation("swiglu", _swiglu, 2, device, tokens, ffn)
    yield _activation("gelu", _gelu, 1, device, tokens, ffn)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _activation(
    name: str, function: Function, operands: int, device: torch.device, tokens: int, width: int
) -> Case:
    pass_bytes = 2.0 * tokens * width
    forward = Work("activation", 0.0, operands * pass_bytes, pass_bytes, "bfloat16")
    backward = Work("activation", 0.0, (operands + 1) * pass_bytes, operands * pass_bytes, "bfloat16")
    return differentiable(
        f"{name} {tokens}×{width}",
        compiled(function, device),
        lambda: tuple(_random(device, tokens, width).requires_grad_() for _ in range(operands)),
        forward=forward,
        backward=backward,
        repeats=repeats_for(forward, MOST_REPEATS),
    )


def _pointwise(device: torch.device, tokens: int, width: int) -> Iterator[Case]:
    """Sum of two tensors, cast of weights, copy, and the sum over tokens that a bias's gradient is."""
    elements = tokens * width
    wide = functools.partial(_random, device, tokens, width, torch.float32)
    narrow = functools.partial(_random, device, tokens, width)
    size = f"{tokens}×{width}"
    for name, function, makers, family, read, written in (
        ("sum", _add, (narrow, narrow), "elementwise", 4, 2),
        ("mixed sum", _add, (wide, narrow), "elementwise", 6, 4),
        ("cast", _narrow, (wide,), "copy", 4, 2),
        ("copy", _copy, (narrow,), "copy", 2, 2),
        ("column sum", _column_sum, (narrow,), "reduction", 2, 0),
    ):
        work = Work(family, 0.0, read * elements, written * elements, "bfloat16")
        yield _plain_case(f"{name} {size}", compiled(function, device), makers, work)


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _narrow(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def _copy(x: Tensor) -> Tensor:
    return x.clone()


def _column_sum(x: Tensor) -> Tensor:
    return x.sum(0)


def _plain_case(name: str, function: Function, makers: tuple[Callable[[], Tensor], ...], work: Work) -> Case:
    repeats = repeats_for(work, MOST_REPEATS)

    def prepare() -> tuple[Pass, ...]:
        sets = [tuple(make() for make in makers) for _ in range(repeats)]
        return (plain(name, function, sets, work),)

    return Case(name, repeats * work.moved_bytes, prepare)


def _rotary(device: torch.device, tokens: int, width: int) -> Iterator[Case]:
    """Queries rotated by position, ``[batch, heads, seq, head_dim]`` as a view of ``[batch, seq, …]``."""
    seq = min(tokens, 2048)
    half = 2.0 * tokens * width
    work = Work("rotary", 0.0, half, half, "bfloat16")

    def inputs() -> tuple[Tensor, ...]:
        x = _random(device, tokens // seq, seq, width // HEAD_DIM, HEAD_DIM)
        return x.transpose(1, 2).requires_grad_(), *rotations(seq, HEAD_DIM, 10_000.0, device)

    yield differentiable(
        f"rotary {tokens}×{width}",
        compiled(rotate, device),
        inputs,
        forward=work,
        backward=work,
        repeats=repeats_for(work, MOST_REPEATS),
    )


def _random(device: torch.device, *shape: int | torch.dtype) -> Tensor:
    """Normal numbers; bfloat16 unless the last argument is another dtype."""
    sizes = [size for size in shape if isinstance(size, int)]
    dtypes = [size for size in shape if isinstance(size, torch.dtype)]
    return torch.randn(sizes, device=device, dtype=dtypes[0] if dtypes else torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
