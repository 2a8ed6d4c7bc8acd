"""The lines of one segment's forward: operators in local shapes, and the collectives between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from autopar.capture.graph import Operator, SegmentType
from autopar.codegen.conversions import conversion_call
from autopar.codegen.expressions import Site, expression, linear_name, runtime_function
from autopar.codegen.lines import CODE_WIDTH, Line, statement
from autopar.codegen.text import attribute, comment, identifier
from autopar.codegen.user_names import user_names
from autopar.shardings.calls import Call, references
from autopar.shardings.placement import REPLICATE, Layout, local_shape
from autopar.shardings.rules.views import RULES as VIEWS
from autopar.shardings.sharded import ShardedGraph

__all__ = ["Scope", "SegmentWriter"]

INLINE_WIDTH = 72
"""Longest expression that is written inside another one."""
_NEVER_INLINE = (
    "aten.dropout.default",
    "aten.scaled_dot_product_attention.default",
    "aten.cross_entropy_loss.default",
)
_BIASED = ("aten.linear.default", "aten.mm.default")


@dataclass
class Scope:
    """What one forward function has written so far: its lines, its names, and what it needs."""

    sharded: ShardedGraph
    resting_dtype: str = "float32"
    """Dtype in which parameters rest."""
    lines: list[Line] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    runtime: set[str] = field(default_factory=set)
    """Functions of ``autopar.runtime`` in use."""
    axes: set[str] = field(default_factory=set)
    """Axes that the function talks to."""

    def fresh(self, wanted: str) -> str:
        """``wanted``, or the next free name after it."""
        name, count = identifier(wanted), 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def shape_note(self, shape: tuple[int, ...], layout: Layout) -> str:
        return str(list(local_shape(shape, layout, self.sharded.sizes)))

    def write_conversion(
        self, owner: tuple[str, str], shape: tuple[int, ...], source: Layout, target: Layout, expr: str
    ) -> str:
        """Emit the steps from ``source`` to ``target``; returns the name of what they leave."""
        layout, base = source, expr if expr.isidentifier() else owner[1]
        for step in self.sharded.steps()[(*owner, target)]:
            axis = self.sharded.axes[step.axis].name
            written = conversion_call(step, expr, axis)
            layout = (*layout[: step.axis], step.target, *layout[step.axis + 1 :])
            if written is None:
                continue
            function, call = written
            self.runtime.add(function)
            self.axes.add(axis)
            expr = self.fresh(f"{base}_{step.target.kind[0]}")
            backward = f"   backward: {step.backward}" if step.backward != "nothing" else ""
            note = self.shape_note(shape, layout) + backward
            self.lines.append(Line(f"{expr} = {call}", note, is_essential=bool(backward)))
        return expr


@dataclass(frozen=True, slots=True)
class _Pending:
    """An expression that waits to be written inside its only reader."""

    operator: Operator
    text: str
    sources: list[str]
    product: tuple[str, str] | None
    """The operands of a matrix product, to be written again with a bias."""


class SegmentWriter:
    """Writes one segment type into a scope."""

    def __init__(self, scope: Scope, segment: SegmentType, owner: str, device: str) -> None:
        self.scope = scope
        self.segment = segment
        self.owner = owner
        """Expression of the module whose parameters the segment uses."""
        self.device = device
        self.versions: dict[tuple[str, Layout], str] = {}
        self.home: dict[str, Layout] = {}
        """The layout in which each value came to be."""
        self.pending: dict[str, _Pending] = {}
        uses = Counter(name for operator in segment.operators for name in references(operator))
        self.single = {name for name, count in uses.items() if count == 1} - set(segment.outputs)
        self.readers = {
            name: place for place, operator in enumerate(segment.operators) for name in references(operator)
        }
        """Place of the last reader of every value."""
        self.user_names = user_names(segment)
        self.last_source = ""

    def write(self, inputs: dict[str, str], resting: dict[str, Layout]) -> dict[str, str]:
        """Write all lines; ``inputs`` names the values handed in, ``resting`` lays out the parameters.

        Returns the expression of every output.
        """
        for name, expr in inputs.items():
            self._bind(name, self.scope.sharded.boundaries[self.segment.name, name], expr)
        for parameter in self.segment.parameters:
            self.scope.runtime.add("local")
            dtype = self.segment.values[parameter.value].dtype
            cast = (
                ""
                if dtype == self.scope.resting_dtype or parameter.is_buffer
                else f", torch.{identifier(dtype)}"
            )
            where = attribute(self.owner, parameter.path)
            self._bind(parameter.value, resting[parameter.value], f"local({where}{cast})")
        plain = self._plain()
        for constant in self.segment.constants:
            value = self.segment.values[constant.value]
            name = self.scope.fresh(constant.value)
            data, dtype = _numbers(constant.data), identifier(value.dtype)
            text = f"torch.tensor({data}, dtype=torch.{dtype}, device={self.device})"
            self.scope.lines += statement(name, text, "")
            self._bind(constant.value, plain, name)
        for operator in self.segment.operators:
            self._operator(operator)
        return {name: self.versions[name, self.home[name]] for name in self.segment.outputs}

    def _plain(self) -> Layout:
        return (REPLICATE,) * len(self.scope.sharded.axes)

    def _bind(self, value: str, layout: Layout, expr: str) -> None:
        self.versions[value, layout] = expr
        self.home[value] = layout

    def _version(self, value: str, wanted: Layout) -> str:
        """The expression of a value in the layout that a reader wants, converted once."""
        if (value, wanted) not in self.versions:
            source = self.home[value]
            self.versions[value, wanted] = self.scope.write_conversion(
                (self.segment.name, value),
                self.segment.values[value].shape,
                source,
                wanted,
                self.versions[value, source],
            )
        return self.versions[value, wanted]

    def _operator(self, operator: Operator) -> None:
        waiting = [self.pending.pop(name) for name in references(operator) if name in self.pending]
        mark = len(self.scope.lines)
        site = self._site(operator)
        biased = _with_bias(operator, site, waiting)
        text = biased or expression(site)
        waits = self._may_wait(operator, text)
        if waiting and not waits and not biased and self._is_long(operator, text):
            for pending in waiting:
                self._emit(pending.operator, pending.text, pending.sources, len(self.scope.lines))
            waiting, mark, site = [], len(self.scope.lines), self._site(operator)
            text = expression(site)
        self._note_needs(site)
        sources = [*(source for pending in waiting for source in pending.sources), operator.source]
        if waits:
            (result,) = operator.results
            assert result is not None
            self._bind(result, site.strategy.results[0], text)
            product = (site.operand(0), site.operand(1)) if operator.target in _BIASED else None
            self.pending[result] = _Pending(operator, text, sources, product)
        else:
            self._emit(operator, text, sources, mark)

    def _site(self, operator: Operator) -> Site:
        """The operator with the expressions of its operands; conversions that they need are written."""
        strategy = self.scope.sharded.strategies[self.segment.name, operator.name]
        call = Call(operator, self.segment.values)
        names = {
            value.name: self._version(value.name, layout)
            for value, layout in zip(call.operands, strategy.operands, strict=True)
        }
        sharded = self.scope.sharded
        return Site(call, strategy, names, self.device, sharded.axis_names, sharded.sizes)

    def _is_long(self, operator: Operator, text: str) -> bool:
        names = ", ".join(self.user_names.get(name, name) if name else "_" for name in operator.results)
        return len(f"{names} = {text}") > CODE_WIDTH

    def _emit(self, operator: Operator, text: str, sources: list[str], mark: int) -> None:
        strategy = self.scope.sharded.strategies[self.segment.name, operator.name]
        self._source_comments(sources, mark)
        if all(name is None for name in operator.results):
            self.scope.lines += [Line("if self.training:"), Line(text, indent=1)]
            return
        names = [self._fresh(name) if name is not None else "_" for name in operator.results]
        first = next(position for position, name in enumerate(operator.results) if name is not None)
        value = self.segment.values[operator.results[first] or ""]
        note = self.scope.shape_note(value.shape, strategy.results[first])
        self.scope.lines += statement(", ".join(names), text, note)
        for name, expr, layout in zip(operator.results, names, strategy.results, strict=True):
            if name is not None:
                self._bind(name, layout, expr)

    def _fresh(self, value: str) -> str:
        """A name for a value: the user's own where it is known."""
        return self.scope.fresh(self.user_names.get(value, value))

    def _source_comments(self, sources: list[str], mark: int) -> None:
        """The user's lines above what was made of them."""
        for source in dict.fromkeys(filter(None, sources)):
            if source != self.last_source:
                self.scope.lines.insert(mark, Line("", comment(source), is_source=True))
                mark += 1
                self.last_source = source

    def _may_wait(self, operator: Operator, text: str) -> bool:
        """True for a short expression that its one reader takes as it is, or a product that gets its bias."""
        (result, *others) = operator.results
        if others or result is None or result not in self.single or operator.target in _NEVER_INLINE:
            return False
        place = self.readers[result]
        reader = self.segment.operators[place]
        position = references(reader).index(result)
        wanted = self.scope.sharded.strategies[self.segment.name, reader.name].operands[position]
        if wanted != self.scope.sharded.strategies[self.segment.name, operator.name].results[0]:
            return False
        if operator.target in _BIASED and _adds_bias(reader, position, self.segment):
            return True
        is_next = self.segment.operators[place - 1] is operator
        is_chain = position == 0 and reader.target in VIEWS
        return len(text) <= INLINE_WIDTH and (is_next or is_chain)

    def _note_needs(self, site: Site) -> None:
        function = runtime_function(site)
        if function:
            self.scope.runtime.add(function)
            for axis, placement in zip(self.scope.sharded.axes, site.strategy.operands[0], strict=True):
                if placement.is_shard:
                    self.scope.axes.add(axis.name)


def _adds_bias(reader: Operator, position: int, segment: SegmentType) -> bool:
    """True when ``reader`` adds a one-dimensional tensor to the operand at ``position``."""
    operands = references(reader)
    is_sum = reader.target == "aten.add.Tensor" and not reader.keywords and len(operands) == 2
    return is_sum and position == 0 and len(segment.values[operands[1]].shape) == 1


def _with_bias(operator: Operator, site: Site, waiting: list[_Pending]) -> str | None:
    """``F.linear(x, w) + b`` as one call, where the product waits to be written."""
    products = [pending for pending in waiting if pending.product]
    if operator.target != "aten.add.Tensor" or not products or len(site.call.operands[1].shape) != 1:
        return None
    operand, weight = products[0].product or ("", "")
    bias = site.operand(1)
    if products[0].operator.target == "aten.linear.default":
        return f"{linear_name(site)}({operand}, {weight}, {bias})"
    return f"torch.addmm({bias}, {operand}, {weight})"


def _numbers(data: object) -> str:
    """A nested list of numbers as source; nothing else gets through."""
    if isinstance(data, (list, tuple)):
        return "[" + ", ".join(_numbers(item) for item in data) + "]"
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return f'float("{data}")'
    if isinstance(data, (bool, int, float)):
        return repr(data)
    raise TypeError(f"a constant holds {type(data).__name__}, not a number")
