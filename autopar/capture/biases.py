"""Biases taken out of matrix products, so that a product sharded along its reduced dim adds its bias once.

``linear(x, w, b)`` becomes ``linear(x, w) + b``; where nothing comes between the two in the plan, the
generated program writes them as one call again.
"""

from __future__ import annotations

from dataclasses import replace

from autopar.capture.graph import Graph, Operator, Ref, SegmentType, Value

__all__ = ["without_biases"]


def without_biases(graph: Graph) -> Graph:
    """The same graph with every biased ``linear`` and ``addmm`` as a product and a sum."""
    return replace(graph, types=tuple(_segment_without_biases(segment) for segment in graph.types))


def _segment_without_biases(segment: SegmentType) -> SegmentType:
    values = dict(segment.values)
    operators: list[Operator] = []
    for operator in segment.operators:
        operators.extend(_split(operator, values))
    return replace(segment, operators=tuple(operators), values=values)


def _split(operator: Operator, values: dict[str, Value]) -> list[Operator]:
    arguments = (*operator.arguments, *(value for _, value in operator.keywords))
    if operator.target == "aten.linear.default" and len(arguments) == 3 and isinstance(arguments[2], Ref):
        operand, weight, bias = arguments
        target = "aten.linear.default"
    elif operator.target == "aten.addmm.default" and not operator.keywords and isinstance(arguments[0], Ref):
        bias, operand, weight = arguments
        target = "aten.mm.default"
    else:
        return [operator]
    (result,) = operator.results
    if result is None:
        return [operator]
    product = _unused_name(f"{result}_product", values)
    values[product] = _product_value(product, values[result], operand, weight, values)
    return [
        replace(
            operator,
            name=product,
            target=target,
            arguments=(operand, weight),
            keywords=(),
            results=(product,),
        ),
        replace(operator, target="aten.add.Tensor", arguments=(Ref(product), bias), keywords=()),
    ]


def _product_value(
    name: str, result: Value, operand: object, weight: object, values: dict[str, Value]
) -> Value:
    sources = [values[argument.value] for argument in (operand, weight) if isinstance(argument, Ref)]
    return replace(result, name=name, requires_grad=any(source.requires_grad for source in sources))


def _unused_name(wanted: str, values: dict[str, Value]) -> str:
    name, count = wanted, 1
    while name in values:
        count += 1
        name = f"{wanted}_{count}"
    return name
