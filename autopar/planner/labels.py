"""Which shardings are by batch and which by sequence, followed through the graph along shared factors.

Pins speak of roles (data, context, tensor); roles speak of batch, sequence and parameters. The first dim of
every input is the batch, the second dim of token-like inputs is the sequence, and so is what attention calls
its query positions (image patches, say); whatever shares a factor with them is the same, blocks included:
after (batch, sequence) is flattened, ``S(0)`` is the batch and ``S(0)x8`` the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autopar.capture.graph import Graph, Value
from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.placement import Placement
from autopar.shardings.strategy import AxisChoice

__all__ = ["BATCH", "SEQUENCE", "Labels", "is_sequence", "label_of_choice", "labels_by_type"]

BATCH, SEQUENCE = "batch", "sequence"

Labels = dict[tuple[str, int, int], str]
"""Label by (value, dim, blocks)."""

Operators = Sequence[tuple[Call, Loops | None]]


def labels_by_type(graph: Graph, operators: Mapping[str, Operators]) -> dict[str, Labels]:
    """Labels of every sharding of every value, by segment type."""
    inner: dict[str, Labels] = {name: {} for name in operators}
    outer = _input_labels(graph)
    _settle(graph, operators, outer, inner)
    for name, labels in inner.items():
        _label_queries(operators[name], labels)
    _settle(graph, operators, outer, inner)
    return inner


def _settle(
    graph: Graph, operators: Mapping[str, Operators], outer: Labels, inner: Mapping[str, Labels]
) -> None:
    """Carry labels through all segments and across their boundaries until nothing is new."""
    types = {segment.name: segment for segment in graph.types}
    grew = True
    while grew:
        grew = sum(_spread(operators[name], known) for name, known in inner.items()) > 0
        for call in graph.calls:
            segment = types[call.type]
            pairs = (
                *zip(call.arguments, segment.inputs, strict=True),
                *zip(call.results, segment.outputs, strict=True),
            )
            for outside, inside in pairs:
                rank = len(graph.values[outside].shape)
                grew |= _exchange(outer, outside, inner[call.type], inside, rank)


def _input_labels(graph: Graph) -> Labels:
    labels: Labels = {}
    for graph_input in graph.inputs:
        value = graph_input.value
        if value.shape:
            labels[value.name, 0, 1] = BATCH
        if is_sequence(value):
            labels[value.name, 1, 1] = SEQUENCE
    return labels


def is_sequence(value: Value) -> bool:
    """True for an input whose dim 1 is the sequence: rows of tokens, or of vectors."""
    return len(value.shape) == (2 if value.dtype.startswith("int") else 3)


def _label_queries(operators: Operators, labels: Labels) -> None:
    """The positions of attention's queries are a sequence wherever nothing else is known of them."""
    for call, _ in operators:
        if "scaled_dot_product_attention" in call.operator.target:
            query = call.operands[0]
            labels.setdefault((query.name, len(query.shape) - 2, 1), SEQUENCE)


def _holders(call: Call, loops: Loops) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """(factor, (value, dim, blocks)) for every dim that holds a factor."""
    names = (*(value.name for value in call.operands), *call.operator.results)
    for name, dims in zip(names, (*loops.operands, *loops.results), strict=False):
        for position, dim in enumerate(dims):
            for held in dim:
                if name is not None:
                    yield held.name, (name, position, held.blocks)


def _spread(operators: Operators, labels: Labels) -> bool:
    """Carry labels along shared factors until nothing is new; True when something was learnt."""
    by_place: dict[tuple[str, int], dict[int, str]] = {}
    for (name, dim, blocks), label in labels.items():
        by_place.setdefault((name, dim), {})[blocks] = label
    learnt, grew = False, True
    while grew:
        grew = False
        for call, loops in operators:
            if loops is None:
                continue
            factors: dict[str, list[tuple[str, int, int]]] = {}
            for factor, place in _holders(call, loops):
                factors.setdefault(factor, []).append(place)
            for places in factors.values():
                known = {
                    blocks // times: label
                    for name, dim, times in places
                    for blocks, label in by_place.get((name, dim), {}).items()
                    if blocks % times == 0
                }
                for name, dim, times in places:
                    here = by_place.setdefault((name, dim), {})
                    for variant, label in known.items():
                        if times * variant not in here:
                            here[times * variant] = label
                            labels[name, dim, times * variant] = label
                            grew = learnt = True
    return learnt


def _exchange(outer: Labels, outside: str, inner: Labels, inside: str, rank: int) -> bool:
    """Carry labels of whole dims across a segment's boundary, both ways."""
    grew = False
    for dim in range(rank):
        there, here = (outside, dim, 1), (inside, dim, 1)
        if there in outer and here not in inner:
            inner[here] = outer[there]
            grew = True
        elif here in inner and there not in outer:
            outer[there] = inner[here]
            grew = True
    return grew


def label_of_choice(call: Call, choice: AxisChoice, labels: Labels) -> str:
    """What an axis shards when it makes this choice: ``batch``, ``sequence`` or neither (empty)."""
    names = (*(value.name for value in call.operands), *call.operator.results)
    placements: tuple[Placement, ...] = (*choice.operands, *choice.results)
    for name, placement in zip(names, placements, strict=True):
        if name is not None and placement.is_shard:
            label = labels.get((name, placement.dim, placement.blocks))
            if label:
                return label
    return ""
