"""Operators of a float32 program that runs them one by one: what a CPU trains with.

Every case counts the bytes of its work as ``autopar.planner.kernels`` does for operators that nothing fuses: the
backward of a call with k trained operands reads the incoming gradient k times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from autopar.measure.cases import Case, Pass, differentiable, plain
from cost_models.operators import Work

__all__ = ["float32_cases"]

SHAPES: tuple[tuple[int, int], ...] = ((256, 512), (1024, 512), (2048, 512), (1024, 2048), (2048, 2048))
"""(tokens, width): 0.5 to 16 MiB, below what the system's allocator maps anew each time."""
LOGITS: tuple[tuple[int, int], ...] = ((256, 2048), (512, 8192), (1024, 4096))
"""(tokens, vocabulary)."""
TABLES: tuple[tuple[int, int, int], ...] = ((512, 2048, 512), (1024, 8192, 512), (2048, 4096, 1024))
"""(tokens, vocabulary, width)."""
HEAD_DIM = 64
NORM_EPS = 1e-5
SIZE = 4.0
"""Bytes of an element."""


def float32_cases(*, is_quick: bool) -> list[Case]:
    """All families on a CPU."""
    step = 2 if is_quick else 1
    cases = [
        case
        for family in (_norms, _activations, _pointwise)
        for shape in SHAPES[::step]
        for case in family(*shape)
    ]
    cases += [_loss(tokens, vocab) for tokens, vocab in LOGITS[::step]]
    return cases + [_embedding(tokens, vocab, width) for tokens, vocab, width in TABLES[::step]]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape)


def _trained(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def _norms(tokens: int, width: int) -> Iterator[Case]:
    elements = float(tokens * width)
    for name, family, function, weights in (
        ("layer norm", "norm", _layer_norm, 2),
        ("rms norm", "rms_norm", _rms_norm, 1),
    ):
        operands = 1 + weights
        yield differentiable(
            f"{name} float32 {tokens}×{width}",
            function,
            lambda weights=weights: (_trained(tokens, width), *(_trained(width) for _ in range(weights))),  # type: ignore[misc]
            forward=Work(family, 0.0, SIZE * elements, SIZE * elements, "float32"),
            backward=Work(
                f"{family}_backward",
                0.0,
                (operands + 1) * SIZE * elements,
                SIZE * elements,
                "float32",
                operands,
            ),
            repeats=1,
        )


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPS)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)


def _activations(tokens: int, width: int) -> Iterator[Case]:
    size = SIZE * tokens * width
    for name, family, function in (("gelu", "gelu", _gelu), ("silu", "activation", F.silu)):
        yield differentiable(
            f"{name} float32 {tokens}×{width}",
            function,
            lambda: (_trained(tokens, width),),
            forward=Work(family, 0.0, size, size, "float32"),
            backward=Work(family, 0.0, 2 * size, size, "float32"),
            repeats=1,
        )


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _pointwise(tokens: int, width: int) -> Iterator[Case]:
    """Sums and products, copies, joins of halves of heads as rotary embeddings do, and a bias's gradient."""
    size, shape = SIZE * tokens * width, f"{tokens}×{width}"

    def two() -> tuple[Tensor, ...]:
        return _random(tokens, width), _random(tokens, width)

    def heads() -> Tensor:
        return _random(tokens, width // HEAD_DIM, HEAD_DIM).transpose(0, 1)

    def attended() -> tuple[Tensor, ...]:
        return (_random(width // HEAD_DIM, tokens, HEAD_DIM).transpose(0, 1),)

    def halves() -> tuple[Tensor, ...]:
        return heads().chunk(2, dim=-1)

    yield _plain(f"sum {shape}", torch.add, two, Work("elementwise", 0.0, 2 * size, size, "float32"))
    yield _plain(f"product {shape}", torch.mul, two, Work("elementwise", 0.0, 2 * size, size, "float32"))
    rotation = (_random(tokens, HEAD_DIM),)
    yield _plain(
        f"rotation {shape}",
        torch.mul,
        lambda: (heads(), *rotation),
        Work("elementwise", 0.0, size + SIZE * tokens * HEAD_DIM, size, "float32"),
    )
    yield _plain(
        f"negation {shape}", torch.neg, lambda: two()[:1], Work("elementwise", 0.0, size, size, "float32")
    )
    yield _plain(f"copy {shape}", torch.clone, lambda: two()[:1], Work("copy", 0.0, size, size, "float32"))
    yield _plain(
        f"heads to rows {shape}", torch.Tensor.contiguous, attended, Work("copy", 0.0, size, size, "float32")
    )
    yield _plain(f"join {shape}", _joined, halves, Work("join", 0.0, size, size, "float32"))
    yield _plain(
        f"column sum {shape}", _column_sum, lambda: two()[:1], Work("reduction", 0.0, size, 0.0, "float32")
    )


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat((first, second), dim=-1)


def _column_sum(x: Tensor) -> Tensor:
    return x.sum(0)


def _plain(
    name: str, function: Callable[..., object], make: Callable[[], Sequence[Tensor]], work: Work
) -> Case:
    def prepare() -> tuple[Pass, ...]:
        return (plain(f"{name} float32", function, [tuple(make())], work),)

    return Case(name, 2 * work.moved_bytes, prepare)


def _loss(tokens: int, vocab: int) -> Case:
    """Log-probabilities are written, their gradient zeroed, and read again."""
    size = SIZE * tokens * vocab
    return differentiable(
        f"cross entropy float32 {tokens}×{vocab}",
        F.cross_entropy,
        lambda: (_trained(tokens, vocab), torch.randint(vocab, (tokens,))),
        forward=Work("log_softmax", 0.0, size, size, "float32"),
        backward=Work("log_softmax_backward", 0.0, 2 * size, 2 * size, "float32"),
        repeats=1,
    )


def _embedding(tokens: int, vocab: int, width: int) -> Case:
    """Rows read and written forward; the table's gradient zeroed and rows added backward."""
    rows, table = SIZE * tokens * width, SIZE * vocab * width
    return differentiable(
        f"embedding float32 {tokens} of {vocab}×{width}",
        _lookup,
        lambda: (_trained(vocab, width), torch.randint(vocab, (tokens,))),
        forward=Work("embedding", 0.0, rows, rows, "float32"),
        backward=Work("embedding_backward", 0.0, 2 * rows, table + rows, "float32"),
        repeats=1,
    )


def _lookup(table: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, table)
