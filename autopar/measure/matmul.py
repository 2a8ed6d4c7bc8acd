"""Matrix products of linear layers: forward, gradient of the input, gradient of the weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from autopar.measure.cases import Case, Pass, plain, repeats_for
from cost_models.operators import Work

__all__ = ["linear_cases"]

TOKENS = (512, 2048, 8192, 32_768)
FEATURES = (
    (768, 768), (768, 2304), (768, 3072), (3072, 768),
    (1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024), (1024, 2816), (2816, 1024),
    (2048, 512), (2048, 2048), (2048, 5632), (5632, 2048), (2048, 8192), (8192, 2048),
    (3072, 1024), (3072, 3072), (3072, 8192), (8192, 3072),
    (4096, 4096), (4096, 1024), (4096, 14_336), (14_336, 4096), (8192, 8192),
)  # fmt: skip
"""(in, out) of the layers of blocks, 100M to 70B parameters (the large ones cut by tensor parallelism)."""
HEAD_TOKENS = (2048, 8192, 32_768)
HEAD_FEATURES = tuple(itertools.product((768, 1024, 2048), (32_000, 50_257, 50_304, 128_256)))
"""(in, out) of loss heads."""
CUBES = (256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
MOST_FLOPS = {"bfloat16": 4e12, "float16": 4e12, "float32": 4e11}
"""A product of a few milliseconds."""
SMALL_TOKENS = (64, 256, 1024, 2048)
SMALL_FEATURES = (
    (64, 64), (128, 512), (256, 256), (512, 128), (512, 512), (512, 2048), (2048, 512),
    (512, 1408), (704, 512), (1024, 1024), (1024, 4096), (4096, 1024), (512, 8192),
)  # fmt: skip
SMALL_MOST_FLOPS = 4.5e9
"""For a CPU: tens of milliseconds."""


def linear_cases(device: torch.device, dtype: str, *, is_quick: bool) -> list[Case]:
    """Three products per shape of a linear layer, from small to large."""
    shapes = sorted(set(_shapes(device, dtype, is_quick)), key=lambda shape: shape[0] * shape[1] * shape[2])
    return [case for shape in shapes for case in _layer_cases(device, dtype, *shape)]


def _shapes(device: torch.device, dtype: str, is_quick: bool) -> Iterator[tuple[int, int, int]]:
    """(tokens, in, out) of the grid."""
    sides: Sequence[int]
    if device.type == "cuda":
        limit, sides = MOST_FLOPS[dtype], CUBES
        layers = _grid(TOKENS, FEATURES) + _grid(HEAD_TOKENS, HEAD_FEATURES)
    else:
        limit, sides = SMALL_MOST_FLOPS, CUBES[:3]
        layers = _grid(SMALL_TOKENS, SMALL_FEATURES)
    chosen = [(side, side, side) for side in sides] + layers[:: 3 if is_quick else 1]
    for shape in chosen:
        if 2.0 * shape[0] * shape[1] * shape[2] <= limit:
            yield shape


def _grid(tokens: Sequence[int], features: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [(count, rows, columns) for count in tokens for rows, columns in features]


def _layer_cases(device: torch.device, dtype: str, tokens: int, rows: int, columns: int) -> Iterator[Case]:
    """x[tokens, in] · w[out, in]ᵀ and its two gradients, as autograd and Inductor call them."""
    x, w, y = (tokens, rows), (columns, rows), (tokens, columns)
    element = getattr(torch, dtype)

    def case(
        name: str, shapes: tuple[tuple[int, int], ...], flips: tuple[bool, bool], m: int, n: int, k: int
    ) -> Case:
        size = element.itemsize
        work = Work("matmul", 2.0 * m * n * k, size * (m * k + k * n), size * m * n, dtype, m=m, n=n, k=k)
        repeats = repeats_for(work) if device.type == "cuda" else 1

        def prepare() -> tuple[Pass, ...]:
            sets = [
                tuple(torch.randn(shape, device=device, dtype=element) for shape in shapes)
                for _ in range(repeats)
            ]
            views = [
                tuple(
                    tensor.t() if is_flipped else tensor
                    for tensor, is_flipped in zip(pair, flips, strict=True)
                )
                for pair in sets
            ]
            return (plain(name, torch.mm, views, work),)

        return Case(f"{name} {dtype} {m}×{n}×{k}", repeats * work.moved_bytes, prepare)

    yield case("linear", (x, w), (False, True), tokens, columns, rows)
    yield case("input gradient", (y, w), (False, False), tokens, rows, columns)
    yield case("weight gradient", (y, x), (True, False), columns, rows, tokens)
