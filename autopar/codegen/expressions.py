"""One operator as the expression a person would write, on local shapes.

Most operators read the same sharded or not. Those that name sizes get local ones; those whose sharded form
needs communication or an offset call ``autopar.runtime``. Anything unknown calls ``torch.ops.aten`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from autopar.capture.graph import Argument, Symbol
from autopar.codegen.text import atom, literal, target_parts
from autopar.shardings.calls import Call
from autopar.shardings.placement import Layout, local_shape
from autopar.shardings.rules import loops_of
from autopar.shardings.strategy import Strategy

__all__ = ["Site", "expression", "linear_name", "runtime_function"]

ROW_BYTES = 16
"""Rows of 16-bit products that begin at other bytes are slow on a GPU: see ``autopar.runtime.products``."""
_SIXTEEN_BITS = {"bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Site:
    """One operator where it is written."""

    call: Call
    strategy: Strategy
    names: dict[str, str]
    """Expression of every value that the operator reads, already in the layout it wants."""
    device: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    def operand(self, position: int) -> str:
        """The expression of an operand, by mention."""
        return self.names[self.call.operands[position].name]

    def text(self, argument: Argument) -> str:
        return literal(argument, self.names, self.device)

    def argument(self, position: int, name: str, default: Argument = None) -> str:
        return self.text(self.call.argument(position, name, default))

    def result_shape(self, position: int = 0) -> tuple[int, ...]:
        value = self.call.results[position]
        if value is None:
            value = self.call.result
        return local_shape(value.shape, self.strategy.results[position], self.sizes)

    def operand_shape(self, position: int) -> tuple[int, ...]:
        return local_shape(self.call.operands[position].shape, self.strategy.operands[position], self.sizes)

    def sharding_axes(self, layout: Layout, dims: tuple[int, ...]) -> str:
        """The axes that shard one of ``dims``, as a tuple, outermost first."""
        found = [
            a
            for a, placement in zip(self.axes, layout, strict=True)
            if placement.is_shard and placement.dim in dims
        ]
        return f"({', '.join(found)}{',' if len(found) == 1 else ''})" if found else ""


def expression(site: Site) -> str:
    """The operator as source."""
    space, name, overload = target_parts(site.call.operator.target)
    if space != "aten":
        return _plain(site)
    writer = _WRITERS.get(f"{name}.{overload}") or _WRITERS.get(name) or _plain
    return _scaled(site, writer(site))


def runtime_function(site: Site) -> str | None:
    """The function of ``autopar.runtime`` that the expression calls, if any."""
    _, name, _ = target_parts(site.call.operator.target)
    if name == "scaled_dot_product_attention" and _query_axes(site):
        return "attention"
    if name == "cross_entropy_loss" and _loss_axes(site) != ("", ""):
        return "cross_entropy"
    if name == "embedding" and _vocabulary_axes(site):
        return "embedding"
    if name == "linear" and linear_name(site) != "F.linear":
        return linear_name(site)
    return None


def _scaled(site: Site, written: str) -> str:
    """A mean over a sharded dim is the sum of the shards' means, each divided by their number."""
    loops = loops_of(site.call)
    if loops is None or not loops.is_mean:
        return written
    ways = prod(
        size
        for size, factor, placement in zip(
            site.sizes, site.strategy.factors, site.strategy.results[0], strict=True
        )
        if factor and placement.kind == "P"
    )
    return f"{atom(written)} / {ways}" if ways > 1 else written


def _plain(site: Site) -> str:
    """``torch.ops.aten.name.overload(...)`` with the captured arguments."""
    space, name, overload = target_parts(site.call.operator.target)
    arguments = [site.text(argument) for argument in site.call.operator.arguments]
    arguments += [
        f"{key}={site.text(value)}" for key, value in site.call.operator.keywords if value is not None
    ]
    return f"torch.ops.{space}.{name}.{overload}({', '.join(arguments)})"


Writer = Callable[[Site], str]


def _infix(symbol: str) -> Writer:
    def write(site: Site) -> str:
        if site.call.operator.keywords or len(site.call.operator.arguments) != 2:
            return _plain(site)
        left, right = (site.text(argument) for argument in site.call.operator.arguments)
        return f"{atom(left)} {symbol} {atom(right)}"

    return write


def _function(prefix: str) -> Writer:
    """``prefix(all captured arguments)``."""

    def write(site: Site) -> str:
        arguments = [site.text(argument) for argument in site.call.operator.arguments]
        arguments += [
            f"{key}={site.text(value)}" for key, value in site.call.operator.keywords if value is not None
        ]
        return f"{prefix}({', '.join(arguments)})"

    return write


def _method(name: str) -> Writer:
    """``x.name(other captured arguments)``."""

    def write(site: Site) -> str:
        first, *rest = (site.text(argument) for argument in site.call.operator.arguments)
        rest += [
            f"{key}={site.text(value)}" for key, value in site.call.operator.keywords if value is not None
        ]
        return f"{atom(first)}.{name}({', '.join(rest)})"

    return write


def _negate(site: Site) -> str:
    return f"-{atom(site.operand(0))}"


def _reshape(site: Site) -> str:
    return f"{atom(site.operand(0))}.reshape({_sizes(site.result_shape())})"


def _expand(site: Site) -> str:
    return f"{atom(site.operand(0))}.expand({_sizes(site.result_shape())})"


def _new(site: Site) -> str:
    """``x.new_zeros(…)`` in local sizes."""
    _, name, _ = target_parts(site.call.operator.target)
    written = [str(site.result_shape())]
    written += [site.text(argument) for argument in site.call.operator.arguments[2:]]
    written += [
        f"{key}={site.text(value)}"
        for key, value in site.call.operator.keywords
        if value is not None and key not in ("pin_memory", "layout", "size")
    ]
    return f"{atom(site.operand(0))}.{name}({', '.join(written)})"


def _repeat(site: Site) -> str:
    """``x.repeat(…)``: as often as local sizes say."""
    result, source = site.result_shape(), site.operand_shape(0)
    source = (1,) * (len(result) - len(source)) + source
    repeats = (after // max(before, 1) for before, after in zip(source, result, strict=True))
    return f"{atom(site.operand(0))}.repeat({', '.join(map(str, repeats))})"


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) if shape else "()"


def _slice(site: Site) -> str:
    """``x[:, a:b]`` in local sizes: blocks of a sharded dim shrink alike."""
    shape, local, kept = site.call.operands[0].shape, site.operand_shape(0), site.result_shape()
    dim = site.call.dim(1, "dim", len(shape))
    start, step = site.call.argument(2, "start", 0) or 0, site.call.argument(4, "step", 1) or 1
    if not isinstance(start, int) or step != 1:
        return _plain(site)
    first = (start + shape[dim] if start < 0 else min(start, shape[dim])) * local[dim] // max(shape[dim], 1)
    last = first + kept[dim]
    window = f"{first or ''}:{last if last < local[dim] else ''}"
    trailing = len(shape) - dim - 1
    where = (
        ", ".join([":"] * dim + [window])
        if dim <= trailing
        else ", ".join(["...", window] + [":"] * trailing)
    )
    return f"{atom(site.operand(0))}[{where}]"


def _select(site: Site) -> str:
    dim, index = site.call.dim(1, "dim", len(site.call.operands[0].shape)), site.call.argument(2, "index", 0)
    return f"{atom(site.operand(0))}[{', '.join([':'] * dim + [str(index)])}]"


def _split(site: Site) -> str:
    dim = site.call.dim(2, "dim", len(site.call.operands[0].shape))
    sizes = []
    for position, value in enumerate(site.call.results):
        if value is None:
            return _unsplit(site, dim)
        sizes.append(site.result_shape(position)[dim])
    return f"{atom(site.operand(0))}.split({sizes}, dim={dim})"


def _unsplit(site: Site, dim: int) -> str:
    """Pieces that nobody uses have no layout of their own: cut as captured, in local sizes."""
    sizes = site.call.argument(1, "split_size", None)
    local, whole = site.operand_shape(0)[dim], site.call.operands[0].shape[dim]
    if "chunk" in site.call.operator.target:
        return f"{atom(site.operand(0))}.chunk({sizes}, dim={dim})"
    scaled = [size * local // whole for size in sizes] if isinstance(sizes, tuple) else sizes * local // whole  # type: ignore[operator]
    return f"{atom(site.operand(0))}.split({scaled}, dim={dim})"


def _to(site: Site) -> str:
    arguments = (*site.call.operator.arguments[1:], *(value for _, value in site.call.operator.keywords))
    wanted = [site.text(a) for a in arguments if isinstance(a, Symbol) and a.kind in ("dtype", "device")]
    return f"{atom(site.operand(0))}.to({', '.join(wanted)})" if wanted else site.operand(0)


def linear_name(site: Site) -> str:
    """The function for a product of ``F.linear`` whose result is that of ``site``."""
    columns = site.result_shape()[-1] * _SIXTEEN_BITS.get(site.call.result.dtype, 0)
    return "aligned_linear" if columns % ROW_BYTES else "F.linear"


def _linear(site: Site) -> str:
    if len(site.call.operands) != 2:
        return _plain(site)
    return f"{linear_name(site)}({site.operand(0)}, {site.operand(1)})"


def _norm(name: str) -> Writer:
    def write(site: Site) -> str:
        keywords = dict(site.call.operator.keywords)
        keywords.pop("cudnn_enable", None)
        arguments = site.call.operator.arguments[: 5 if name == "layer_norm" else 4]
        written = [site.text(argument) for argument in arguments]
        written += [f"{key}={site.text(value)}" for key, value in keywords.items()]
        return f"F.{name}({', '.join(written)})"

    return write


def _query_axes(site: Site) -> str:
    rank = len(site.call.operands[0].shape)
    return site.sharding_axes(site.strategy.operands[0], (rank - 2,))


def _attention(site: Site) -> str:
    dropout = site.argument(4, "dropout_p", 0.0)
    options = {
        "attn_mask": site.argument(3, "attn_mask"),
        "dropout_p": "0.0" if dropout in ("0.0", "0") else f"{dropout} if self.training else 0.0",
        "is_causal": site.argument(5, "is_causal", False),
        "scale": site.argument(6, "scale"),
        "enable_gqa": site.argument(7, "enable_gqa", False),
    }
    defaults = {
        "attn_mask": "None",
        "dropout_p": "0.0",
        "is_causal": "False",
        "scale": "None",
        "enable_gqa": "False",
    }
    operands = [site.text(argument) for argument in site.call.operator.arguments[:3]]
    axes = _query_axes(site)
    written = [*operands, *([f"query_axes={axes}"] if axes else [])]
    written += [f"{key}={value}" for key, value in options.items() if value != defaults[key]]
    return f"{'attention' if axes else 'F.scaled_dot_product_attention'}({', '.join(written)})"


def _loss_axes(site: Site) -> tuple[str, str]:
    """(axes that shard rows, axes that shard classes) of a cross-entropy."""
    rank = len(site.call.operands[0].shape)
    classes = 1 if rank > 1 else 0
    rows = tuple(dim for dim in range(rank) if dim != classes)
    layout = site.strategy.operands[0]
    return site.sharding_axes(layout, rows), site.sharding_axes(layout, (classes,))


_REDUCTIONS = {"0": '"none"', "1": '"mean"', "2": '"sum"'}


def _cross_entropy(site: Site) -> str:
    rows, classes = _loss_axes(site)
    reduction = _REDUCTIONS[site.argument(3, "reduction", 1)]
    options = {
        "batch_axes": rows,
        "vocabulary_axes": classes,
        "weight": site.argument(2, "weight"),
        "reduction": reduction,
        "ignore_index": site.argument(4, "ignore_index", -100),
        "label_smoothing": site.argument(5, "label_smoothing", 0.0),
    }
    defaults = {"", "None", '"mean"', "-100", "0.0"}
    written = [site.operand(0), site.operand(1)]
    written += [f"{key}={value}" for key, value in options.items() if value not in defaults]
    return f"{'cross_entropy' if rows or classes else 'F.cross_entropy'}({', '.join(written)})"


def _elementwise_loss(name: str) -> Writer:
    def write(site: Site) -> str:
        reduction = _REDUCTIONS[site.argument(2, "reduction", 1)]
        option = "" if reduction == '"mean"' else f", reduction={reduction}"
        return f"F.{name}({site.operand(0)}, {site.operand(1)}{option})"

    return write


def _vocabulary_axes(site: Site) -> str:
    return site.sharding_axes(site.strategy.operands[0], (0,))


def _embedding(site: Site) -> str:
    axes, padding = _vocabulary_axes(site), site.call.argument(2, "padding_idx", -1)
    written = [site.operand(1), site.operand(0)]
    if axes:
        written += [f"axes={axes}", f"vocabulary={site.call.operands[0].shape[0]}"]
    if isinstance(padding, int) and padding >= 0:
        written.append(f"padding_idx={padding}")
    return f"{'embedding' if axes else 'F.embedding'}({', '.join(written)})"


def _factory(name: str) -> Writer:
    """``torch.arange(…)`` and its kin, on the device of the inputs, without arguments that change nothing."""

    def write(site: Site) -> str:
        written = [site.text(argument) for argument in site.call.operator.arguments]
        for key, value in site.call.operator.keywords:
            if value is not None and key not in ("pin_memory", "layout"):
                written.append(f"{key}={site.text(value)}")
        return f"torch.{name}({', '.join(written)})"

    return write


_RESHAPES = ["view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"]
_FUNCTIONAL = ["gelu", "silu", "relu", "leaky_relu", "softplus", "mish", "hardtanh", "hardswish", "dropout"]
_METHODS = [
    "transpose",
    "t",
    "permute",
    "contiguous",
    "expand_as",
    "tanh",
    "sigmoid",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "abs",
    "erf",
    "clone",
    "detach",
    "cumsum",
    "masked_fill",
    "clamp",
    "unbind",
    "logsumexp",
    "amax",
    "amin",
    "argmax",
    "square",
    "sum",
    "mean",
    "softmax",
    "log_softmax",
]
_INFIX = {
    "add.Tensor": "+",
    "sub.Tensor": "-",
    "mul.Tensor": "*",
    "div.Tensor": "/",
    "add.Scalar": "+",
    "sub.Scalar": "-",
    "mul.Scalar": "*",
    "div.Scalar": "/",
    "pow.Tensor_Scalar": "**",
    "pow.Tensor_Tensor": "**",
    "pow.Scalar": "**",
    "eq.Tensor": "==",
    "eq.Scalar": "==",
    "ne.Tensor": "!=",
    "ne.Scalar": "!=",
    "lt.Tensor": "<",
    "lt.Scalar": "<",
    "le.Tensor": "<=",
    "le.Scalar": "<=",
    "gt.Tensor": ">",
    "gt.Scalar": ">",
    "ge.Tensor": ">=",
    "ge.Scalar": ">=",
    "__and__.Tensor": "&",
    "bitwise_and.Tensor": "&",
    "__or__.Tensor": "|",
    "bitwise_or.Tensor": "|",
    "matmul.default": "@",
    "mm.default": "@",
}

_WRITERS: dict[str, Writer] = {
    **{name: _infix(symbol) for name, symbol in _INFIX.items()},
    **dict.fromkeys(_RESHAPES, _reshape),
    **{name: _function(f"F.{name}") for name in _FUNCTIONAL},
    **{name: _method(name) for name in _METHODS},
    **{
        name: _function(f"torch.{name}")
        for name in ("cat", "stack", "where", "outer", "maximum", "minimum", "bmm")
    },
    **{name: _factory(name) for name in ("arange", "zeros", "ones", "full", "tril", "triu", "empty")},
    "neg": _negate,
    "expand": _expand,
    "repeat": _repeat,
    "new_zeros": _new,
    "new_ones": _new,
    "new_full": _new,
    "linalg_vector_norm": _function("torch.linalg.vector_norm"),
    "slice": _slice,
    "narrow": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "to": _to,
    "_to_copy": _to,
    "linear": _linear,
    "layer_norm": _norm("layer_norm"),
    "rms_norm": _norm("rms_norm"),
    "scaled_dot_product_attention": _attention,
    "cross_entropy_loss": _cross_entropy,
    "embedding": _embedding,
    "mse_loss": _elementwise_loss("mse_loss"),
    "l1_loss": _elementwise_loss("l1_loss"),
}
