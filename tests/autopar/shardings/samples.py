"""Random calls of every operator that has a sharding rule.

``SAMPLES[target](draw)`` gives the arguments of one call, tensors in float64 (or as the operator needs them);
``call_of`` runs it and describes it as capture would.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopar.capture.graph import Argument, Operator, Ref, Symbol, Value
from autopar.capture.interpret import operator_function
from autopar.shardings.calls import Call

__all__ = ["SAMPLES", "Draw", "Sample", "call_of"]


class Draw:
    """Random sizes and tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self) -> int:
        """The length of a dim: most divide over 2, 3 and 4 ranks, also in blocks; some do not."""
        return self.random.choice([12, 12, 12, 24, 24, 8, 6, 5, 1])

    def even(self) -> int:
        """A length that divides over 2, 3 and 4 ranks."""
        return self.random.choice([12, 24])

    def shape(self, rank: int) -> tuple[int, ...]:
        """``rank`` lengths of which one at least divides evenly."""
        sizes = [self.size() for _ in range(rank)]
        sizes[self.random.randrange(rank)] = self.even()
        return tuple(sizes)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator).requires_grad_()

    def positive(self, *shape: int) -> Tensor:
        return (0.5 + torch.rand(shape, dtype=torch.float64, generator=self.generator)).requires_grad_()

    def integers(self, high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def booleans(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < 0.5

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts against ``shape``: as it is, with dims of one, or without leading dims."""
        kept = shape[self.random.choice([0, 0, 0, 1]) :]
        return tuple(1 if self.random.random() < 0.2 else size for size in kept)

    def chance(self) -> bool:
        return self.random.random() < 0.5

    def dim(self, rank: int) -> int:
        """A dim counted from the front or from the back."""
        return self.random.randrange(-rank, rank)


@dataclass(frozen=True)
class Sample:
    """One call and the tensors it was made with."""

    call: Call
    tensors: dict[str, Tensor]
    """Operands by value name."""
    results: tuple[Tensor, ...]
    """Of the whole tensors, with their autograd graph."""


Arguments = tuple[Any, ...]
"""Positional arguments; a trailing dict holds keywords."""
Sampler = Callable[[Draw], Arguments]


def call_of(target: str, arguments: Arguments) -> Sample:
    """Run ``target`` on ``arguments`` and describe the call; a tensor passed twice is one value."""
    keywords = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    positional = arguments[:-1] if keywords else arguments
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def plain(argument: Any) -> Argument:
        if isinstance(argument, Tensor):
            if id(argument) not in names:
                names[id(argument)] = f"x{len(names)}"
                tensors[names[id(argument)]] = argument
            return Ref(names[id(argument)])
        if isinstance(argument, list | tuple):
            return tuple(plain(item) for item in argument)
        if isinstance(argument, torch.dtype):
            return Symbol("dtype", str(argument).removeprefix("torch."))
        return argument

    made = operator_function(target)(*positional, **keywords)
    results = (made,) if isinstance(made, Tensor) else tuple(made)
    operator = Operator(
        name="y0",
        target=target,
        arguments=tuple(plain(argument) for argument in positional),
        keywords=tuple((name, plain(argument)) for name, argument in keywords.items()),
        results=tuple(f"y{position}" for position in range(len(results))),
    )
    everything = {**tensors, **dict(zip(operator.results, results, strict=True))}
    values = {name: _value(name, tensor) for name, tensor in everything.items()}
    return Sample(Call(operator, values), tensors, results)


def _value(name: str, tensor: Tensor) -> Value:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Value(name, tuple(tensor.shape), dtype, tensor.requires_grad)


def _unary(draw: Draw) -> Arguments:
    return (draw.normal(*draw.shape(draw.random.choice([1, 2, 3]))),)


def _unary_positive(draw: Draw) -> Arguments:
    return (draw.positive(*draw.shape(2)),)


def _binary(draw: Draw) -> Arguments:
    """Either side may be the one that broadcasts, a number, or the same tensor again."""
    shape = draw.shape(3)
    x, y = draw.normal(*shape), draw.normal(*draw.broadcast(shape))
    kind = draw.random.randrange(5)
    return [(x, y), (y, x), (x, x), (x, 1.5), (x, y)][kind]


def _binary_tensors(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    x, y = draw.positive(*shape), draw.positive(*draw.broadcast(shape))
    return (x, y) if draw.chance() else (y, x)


def _scalar(draw: Draw) -> Arguments:
    return draw.normal(*draw.shape(2)), draw.random.choice([2.5, -1.5])


def _comparison(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    return draw.integers(3, *shape), draw.integers(3, *draw.broadcast(shape))


def _scalar_comparison(draw: Draw) -> Arguments:
    return draw.integers(3, *draw.shape(2)), 1


def _booleans(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    return draw.booleans(*shape), draw.booleans(*draw.broadcast(shape))


def _where(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    return draw.booleans(*draw.broadcast(shape)), draw.normal(*shape), draw.normal(*draw.broadcast(shape))


def _masked_fill(draw: Draw) -> Arguments:
    shape = draw.shape(3)
    return draw.normal(*shape), draw.booleans(*draw.broadcast(shape)), -2.0


def _ternary(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    x, y, z = draw.normal(*shape), draw.normal(*draw.broadcast(shape)), draw.positive(*draw.broadcast(shape))
    return x, y, z


def _linear(draw: Draw) -> Arguments:
    inner, outer = draw.even(), draw.size()
    leading = draw.shape(draw.random.choice([1, 2]))
    arguments = draw.normal(*leading, inner), draw.normal(outer, inner)
    return (*arguments, draw.normal(outer)) if draw.chance() else arguments


def _addmm(draw: Draw) -> Arguments:
    m, k, n = draw.even(), draw.size(), draw.even()
    bias = draw.random.choice([(n,), (m, n), (1, n)])
    arguments = draw.normal(*bias), draw.normal(m, k), draw.normal(k, n)
    return (*arguments, {"beta": 0.5, "alpha": 2.0}) if draw.chance() else arguments


def _mm(draw: Draw) -> Arguments:
    m, k, n = draw.size(), draw.even(), draw.size()
    return draw.normal(m, k), draw.normal(k, n)


def _bmm(draw: Draw) -> Arguments:
    b, m, k, n = draw.even(), draw.size(), draw.even(), draw.size()
    return draw.normal(b, m, k), draw.normal(b, k, n)


def _matmul(draw: Draw) -> Arguments:
    m, k, n = draw.size(), 12, draw.random.choice([12, 6, 1])
    leading = draw.random.choice([(12, 6), (5, 12), (1, 12), (12, 1)])
    right = draw.random.choice([(k, n), (*leading, k, n), (leading[1], k, n), (1, leading[1], k, n)])
    left = draw.random.choice([(*leading, m, k), (*leading, m, k), (m, k)])
    return draw.normal(*left), draw.normal(*right)


def _einsum(draw: Draw) -> Arguments:
    a, b, c, d = draw.even(), draw.size(), draw.even(), draw.size()
    return draw.random.choice(
        [
            ("abc,cd->abd", [draw.normal(a, b, c), draw.normal(c, d)]),
            ("ab, ab -> a", [draw.normal(a, b), draw.normal(a, b)]),
            ("abc,bd,dc->ad", [draw.normal(a, b, c), draw.normal(b, d), draw.normal(d, c)]),
            ("ab->ba", [draw.normal(a, b)]),
            ("a,b->ab", [draw.normal(a), draw.normal(b)]),
        ]
    )


def _conv1d(draw: Draw) -> Arguments:
    n, i, o = draw.even(), draw.even(), draw.size()
    arguments = draw.normal(n, i, 5), draw.normal(o, i, 3)
    return (*arguments, draw.normal(o), [2], [1]) if draw.chance() else arguments


def _conv2d(draw: Draw) -> Arguments:
    n, i, o = draw.even(), 12, draw.size()
    arguments = draw.normal(n, i, 4, 5), draw.normal(o, i, 2, 3)
    return (*arguments, draw.normal(o), [1, 2]) if draw.chance() else arguments


def _attention(draw: Draw) -> Arguments:
    batch, heads, queries, keys, width = draw.size(), draw.even(), draw.even(), draw.size(), 4
    groups = draw.random.choice([1, 1, 2, 3])
    q = draw.normal(batch, heads, queries, width)
    k, v = draw.normal(batch, heads // groups, keys, width), draw.normal(batch, heads // groups, keys, 3)
    is_causal = draw.chance()
    mask = None
    if not is_causal and draw.chance():
        shape = draw.random.choice(
            [(queries, keys), (1, 1, queries, keys), (batch, heads, queries, keys), (batch, 1, 1, keys)]
        )
        mask = draw.normal(*shape).detach() if draw.chance() else draw.booleans(*shape) | _first(shape)
    keywords: dict[str, Any] = {"enable_gqa": True} if groups > 1 else {}
    keywords |= {"scale": 0.3} if draw.chance() else {}
    if mask is not None:
        return q, k, v, mask, 0.0, False, keywords
    return (q, k, v, None, 0.0, is_causal, keywords) if keywords else (q, k, v, None, 0.0, is_causal)


def _first(shape: tuple[int, ...]) -> Tensor:
    """True for the first key: no query is left without any."""
    return torch.arange(shape[-1]).expand(shape) == 0


def _attention_of_three(draw: Draw) -> Arguments:
    heads, tokens = draw.even(), draw.even()
    return tuple(draw.normal(heads, tokens, 4) for _ in range(3))


def _embedding(draw: Draw) -> Arguments:
    vocabulary, width = draw.random.choice([12, 24, 48]), draw.size()
    indices = draw.integers(vocabulary, *draw.shape(draw.random.choice([1, 2])))
    table = draw.normal(vocabulary, width)
    return (table, indices, draw.random.choice([0, 7])) if draw.chance() else (table, indices)


def _cross_entropy(draw: Draw) -> Arguments:
    classes, rows = draw.random.choice([12, 24]), draw.random.choice([12, 24, 60])
    extra = draw.random.choice([(), (), (), (4,)])
    if draw.random.random() < 0.1:
        return draw.normal(classes), draw.integers(classes)
    target = draw.integers(classes, rows, *extra)
    ignored = draw.random.choice([-100, 3])
    target[: rows // 3] = ignored
    weight = draw.positive(classes).detach() if draw.random.random() < 0.2 else None
    smoothing = 0.1 if draw.random.random() < 0.2 else 0.0
    reduction = draw.random.choice([1, 1, 1, 2, 0])
    logits = draw.normal(rows, classes, *extra)
    if (weight, smoothing, reduction, ignored) == (None, 0.0, 1, -100):
        return logits, target
    return logits, target, weight, reduction, ignored, smoothing


def _elementwise_loss(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    arguments = draw.normal(*shape), draw.normal(*shape).detach()
    return draw.random.choice([arguments, (*arguments, 0), (*arguments, 1), (*arguments, 2)])


def _norm(*, has_bias: bool) -> Sampler:
    def sample(draw: Draw) -> Arguments:
        shape = draw.shape(3)
        normalized = list(shape[draw.random.choice([1, 2]) :])
        parameters = [draw.normal(*normalized) for _ in range(2 if has_bias else 1)]
        if draw.chance():
            return draw.normal(*shape), normalized
        return draw.normal(*shape), normalized, *parameters, 1e-3

    return sample


def _along(draw: Draw) -> Arguments:
    return draw.normal(*draw.shape(3)), draw.dim(3)


def _along_half(draw: Draw) -> Arguments:
    return (*_along(draw), False)


def _reduction(draw: Draw) -> Arguments:
    x = draw.normal(*draw.shape(3))
    dims = draw.random.choice([[0], [1], [-1], [0, 2], [0, 1, 2]])
    return (x, dims, True) if draw.chance() else (x, dims)


def _truth(draw: Draw) -> Arguments:
    x = draw.booleans(*draw.shape(3))
    return (x, draw.dim(3), True) if draw.chance() else (x, draw.dim(3))


def _argmax(draw: Draw) -> Arguments:
    x = draw.normal(*draw.shape(3))
    return draw.random.choice([(x,), (x, 1), (x, -1, True)])


def _vector_norm(draw: Draw) -> Arguments:
    x, order = draw.normal(*draw.shape(3)), draw.random.choice([2, 2.0, 1, 3.0])
    return draw.random.choice([(x, order, [-1], True), (x, order, [0, 1]), (x, order)])


_RESHAPES = [
    ((12, 24), (288,)),
    ((288, 4), (12, 24, 4)),
    ((4, 6, 24), (24, 24)),
    ((12, 24), (12, 4, 6)),
    ((12, 4, 6), (12, 24)),
    ((6, 8, 12), (48, 12)),
    ((6, 4, 5), (4, 6, 5)),
    ((24, 36), (36, 24)),
    ((12, 1, 24), (12, 24)),
    ((12, 24), (1, 12, 24, 1)),
    ((2, 3, 4, 5), (6, 20)),
    ((12, 3, 24), (-1, 24)),
    ((7, 12), (12, 7)),
]


def _reshape(draw: Draw) -> Arguments:
    source, target = draw.random.choice(_RESHAPES)
    return draw.normal(*source), list(target)


def _flatten(draw: Draw) -> Arguments:
    first = draw.random.choice([0, 1])
    return draw.normal(*draw.shape(3)), first, draw.random.choice([2, -1])


def _unflatten(draw: Draw) -> Arguments:
    return draw.normal(draw.size(), 72), -1, draw.random.choice([[6, 12], [12, -1], [3, 24]])


def _unsqueeze(draw: Draw) -> Arguments:
    return draw.normal(*draw.shape(2)), draw.random.choice([0, 1, 2, -1])


def _squeeze(draw: Draw) -> Arguments:
    return (draw.normal(draw.even(), 1, draw.even()),)


def _transpose(draw: Draw) -> Arguments:
    return draw.normal(*draw.shape(3)), draw.dim(3), draw.dim(3)


def _permute(draw: Draw) -> Arguments:
    return draw.normal(*draw.shape(3)), draw.random.choice([[2, 0, 1], [0, 2, 1], [-1, 1, 0]])


def _expand(draw: Draw) -> Arguments:
    a, b = draw.even(), draw.even()
    return draw.random.choice(
        [(draw.normal(1, b), [a, b]), (draw.normal(b), [a, -1]), (draw.normal(a, 1, b), [-1, 6, -1])]
    )


def _expand_as(draw: Draw) -> Arguments:
    a, b = draw.even(), draw.even()
    y = draw.normal(a, b)
    return draw.random.choice([(draw.normal(1, b), y), (draw.normal(b), y), (draw.normal(a, 1), y)])


def _broadcast_tensors(draw: Draw) -> Arguments:
    a, b = draw.even(), draw.even()
    return ([draw.normal(a, b), draw.random.choice([draw.normal(a, b), draw.normal(b), draw.normal(a, 1)])],)


def _select(draw: Draw) -> Arguments:
    return draw.normal(12, 24, 12), draw.dim(3), draw.random.choice([0, 5, -1])


def _slice(draw: Draw) -> Arguments:
    x, along = draw.normal(24, 36, 12), draw.random.choice([0, 1, -1])
    length = x.shape[along]
    third = length // 3
    start, end = draw.random.choice(
        [(0, third), (third, 2 * third), (-third, 2**63 - 1), (None, length // 2), (1, length), (2, third)]
    )
    return (x, along, start, end, 2) if draw.random.random() < 0.2 else (x, along, start, end)


def _narrow(draw: Draw) -> Arguments:
    return draw.random.choice([(draw.normal(24, 36), 1, 12, 12), (draw.normal(24, 36), 0, 3, 10)])


def _split(draw: Draw) -> Arguments:
    return draw.normal(12, 72, 24), draw.random.choice([24, 36, 12, 30]), draw.random.choice([1, -2])


def _split_sizes(draw: Draw) -> Arguments:
    return draw.normal(12, 72), draw.random.choice([[24, 24, 24], [48, 12, 12], [36, 36]]), -1


def _chunk(draw: Draw) -> Arguments:
    return draw.normal(12, 72, 24), draw.random.choice([2, 3, 5]), draw.random.choice([1, -2])


def _unbind(draw: Draw) -> Arguments:
    return draw.normal(3, 12, 24), draw.random.choice([0, -3])


def _cat(draw: Draw) -> Arguments:
    along = draw.random.choice([0, 1, -1])
    if draw.chance():
        return [draw.normal(12, 24) for _ in range(3)], along
    shapes = [(12, 24), (5, 24)] if along == 0 else [(12, 24), (12, 7)]
    return [draw.normal(*shape) for shape in shapes], along


def _stack(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    return [draw.normal(*shape) for _ in range(3)], draw.random.choice([0, 1, -1])


def _pad(draw: Draw) -> Arguments:
    x = draw.normal(12, 24)
    return draw.random.choice([(x, [1, 2]), (x, [0, 0, 3, 0]), (x, [0, 1], "constant", -100.0)])


def _constant_pad(draw: Draw) -> Arguments:
    return draw.normal(12, 24), [0, 1], 2.0


def _roll(draw: Draw) -> Arguments:
    x = draw.normal(12, 24)
    return draw.random.choice([(x, [3], [0]), (x, [1, 2], [0, -1]), (x, [5])])


def _flip(draw: Draw) -> Arguments:
    return draw.normal(12, 24), draw.random.choice([[0], [-1], [0, 1]])


def _dtype(draw: Draw) -> Arguments:
    dtype = draw.random.choice([torch.float64, torch.float32])
    return draw.normal(*draw.shape(2)).detach().requires_grad_(dtype is torch.float64), dtype


def _new(draw: Draw) -> Arguments:
    shape = draw.shape(draw.random.choice([1, 2, 3]))
    return draw.normal(*shape), list(shape) if draw.chance() else [shape[0], 7]


def _slice_scatter(draw: Draw) -> Arguments:
    rank, size = draw.random.choice([2, 3]), draw.even()
    dim, shape = draw.dim(rank), list(draw.shape(rank))
    shape[dim] = size
    written = [*shape]
    written[dim] = size - 1
    return draw.normal(*shape), draw.normal(*written), dim, 1, 2**63 - 1


def _select_scatter(draw: Draw) -> Arguments:
    rank = draw.random.choice([2, 3])
    dim, shape = draw.dim(rank), draw.shape(rank)
    written = [size for place, size in enumerate(shape) if place != dim % rank]
    return draw.normal(*shape), draw.normal(*written), dim, 0


def _repeat(draw: Draw) -> Arguments:
    shape = draw.shape(2)
    repeats = [draw.random.choice([1, 1, 3]) if size > 1 else 12 for size in shape]
    return draw.normal(*shape), [12, *repeats] if draw.chance() else repeats


def _index(draw: Draw) -> Arguments:
    table = draw.normal(9, *draw.shape(2))
    if draw.chance():
        rows = draw.integers(9, *draw.shape(2))
        return (
            (table, [rows])
            if draw.chance()
            else (table.detach().movedim(0, 1).requires_grad_(), [None, rows])
        )
    rows, columns = draw.integers(9, draw.even(), 1), draw.integers(table.shape[1], 1, draw.even())
    return table, [rows, columns]


_UNARY = (
    "relu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "exp",
    "sin",
    "cos",
    "abs",
    "erf",
    "sign",
    "square",
    "softplus",
    "leaky_relu",
    "elu",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "mish",
    "log_sigmoid",
    "relu6",
    "floor",
    "ceil",
    "round",
    "neg",
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift_fresh_copy",
    "positive",
    "isnan",
    "isinf",
    "zeros_like",
    "ones_like",
)

SAMPLES: dict[str, Sampler] = {
    **{f"aten.{name}.default": _unary for name in _UNARY},
    **{f"aten.{name}.default": _unary_positive for name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal")},
    **{f"aten.{name}.Tensor": _binary for name in ("add", "sub", "mul")},
    "aten.rsub.Tensor": _binary_tensors,
    **{f"aten.{name}.Scalar": _scalar for name in ("add", "sub", "mul", "div", "rsub", "fmod", "remainder")},
    **{f"aten.{name}.Tensor": _binary_tensors for name in ("div", "fmod", "remainder")},
    **{f"aten.{name}.default": _binary_tensors for name in ("maximum", "minimum", "atan2")},
    "aten.floor_divide.default": lambda draw: tuple(each.detach() for each in _binary_tensors(draw)),
    "aten.pow.Tensor_Scalar": lambda draw: (*_unary(draw), draw.random.choice([2, 3.0])),
    "aten.pow.Tensor_Tensor": _binary_tensors,
    "aten.pow.Scalar": lambda draw: (2.5, *_unary(draw)),
    "aten.div.Tensor_mode": lambda draw: (*_binary_tensors(draw), {"rounding_mode": "floor"}),
    "aten.div.Scalar_mode": lambda draw: (*_scalar(draw), {"rounding_mode": "trunc"}),
    "aten.clamp.default": lambda draw: (*_unary(draw), -0.5, 0.5),
    "aten.clamp_min.default": lambda draw: (*_unary(draw), 0.1),
    "aten.clamp_max.default": lambda draw: (*_unary(draw), 0.1),
    **{f"aten.{name}.Tensor": _comparison for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"aten.{name}.Scalar": _scalar_comparison for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"aten.{name}.Tensor": _booleans for name in ("bitwise_and", "bitwise_or", "__and__", "__or__")},
    **{f"aten.logical_{name}.default": _booleans for name in ("and", "or", "xor")},
    **{f"aten.{name}.default": lambda draw: _booleans(draw)[:1] for name in ("logical_not", "bitwise_not")},
    "aten.where.self": _where,
    "aten.where.ScalarOther": lambda draw: (*_where(draw)[:2], 0.5),
    "aten.where.ScalarSelf": lambda draw: (_where(draw)[0], 0.5, _where(draw)[1][:1, :1]),
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.masked_fill.Tensor": lambda draw: (*_masked_fill(draw)[:2], draw.normal()),
    "aten.full_like.default": lambda draw: (*_unary(draw), 3.0),
    "aten.dropout.default": lambda draw: (*_unary(draw), 0.0, True),
    "aten.lerp.Scalar": lambda draw: (*_ternary(draw)[:2], 0.3),
    "aten.lerp.Tensor": _ternary,
    "aten.addcmul.default": _ternary,
    "aten.addcdiv.default": _ternary,
    "aten.to.dtype": _dtype,
    "aten._to_copy.default": lambda draw: (*_unary(draw), {"dtype": torch.float64}),
    "aten.to.device": lambda draw: (*_unary(draw), torch.device("cpu"), torch.float64),
    "aten.to.dtype_layout": lambda draw: (*_unary(draw), {"dtype": torch.float64}),
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _mm,
    "aten.bmm.default": _bmm,
    "aten.matmul.default": _matmul,
    "aten.einsum.default": _einsum,
    "aten.outer.default": lambda draw: (draw.normal(draw.even()), draw.normal(draw.size())),
    "aten.conv1d.default": _conv1d,
    "aten.conv2d.default": _conv2d,
    "aten.scaled_dot_product_attention.default": lambda draw: (
        _attention(draw) if draw.random.random() < 0.8 else _attention_of_three(draw)
    ),
    "aten.embedding.default": _embedding,
    "aten.cross_entropy_loss.default": _cross_entropy,
    **{f"aten.{name}_loss.default": _elementwise_loss for name in ("mse", "l1", "smooth_l1")},
    "aten.layer_norm.default": _norm(has_bias=True),
    "aten.rms_norm.default": _norm(has_bias=False),
    "aten.softmax.int": _along,
    "aten.log_softmax.int": _along,
    "aten._softmax.default": _along_half,
    "aten._log_softmax.default": _along_half,
    "aten.cumsum.default": _along,
    "aten.sum.default": lambda draw: (draw.normal(*draw.shape(2)),),
    "aten.mean.default": lambda draw: (draw.normal(*draw.shape(2)),),
    **{
        f"aten.{name}": _reduction for name in ("sum.dim_IntList", "mean.dim", "amax.default", "amin.default")
    },
    "aten.logsumexp.default": _reduction,
    "aten.any.dim": _truth,
    "aten.all.dim": _truth,
    "aten.argmax.default": _argmax,
    "aten.linalg_vector_norm.default": _vector_norm,
    **{f"aten.{name}.default": _reshape for name in ("view", "reshape", "_unsafe_view")},
    "aten.flatten.using_ints": _flatten,
    "aten.unflatten.int": _unflatten,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": lambda draw: (*_squeeze(draw), draw.random.choice([1, -2])),
    "aten.squeeze.dims": lambda draw: (*_squeeze(draw), [1]),
    "aten.transpose.int": _transpose,
    "aten.t.default": lambda draw: (draw.normal(*draw.shape(draw.random.choice([1, 2]))),),
    "aten.permute.default": _permute,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand_as,
    "aten.broadcast_tensors.default": _broadcast_tensors,
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split_sizes,
    "aten.split.sizes": _split_sizes,
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "aten.cat.default": _cat,
    "aten.concat.default": _cat,
    "aten.stack.default": _stack,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _constant_pad,
    "aten.new_zeros.default": _new,
    "aten.new_ones.default": _new,
    "aten.new_full.default": lambda draw: (*_new(draw), 2.5),
    "aten.fill.Scalar": lambda draw: (*_unary(draw), 2.5),
    "aten.fill.Tensor": lambda draw: (*_unary(draw), draw.normal()),
    "aten.slice_scatter.default": _slice_scatter,
    "aten.select_scatter.default": _select_scatter,
    "aten.repeat.default": _repeat,
    "aten.index.Tensor": _index,
    "aten.roll.default": _roll,
    "aten.flip.default": _flip,
}
"""One sampler for each declared rule."""
