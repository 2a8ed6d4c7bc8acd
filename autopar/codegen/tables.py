"""The tables of a program: mesh, inputs, parameters, outputs, blocks. Repeated blocks are written once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from autopar.capture.graph import GraphParameter
from autopar.codegen.text import identifier, quoted
from autopar.shardings.placement import REPLICATE, Layout, format_layout, shard
from autopar.shardings.sharded import ShardedGraph, stages_of_parameters

__all__ = ["blocks_table", "has_recompute", "output_joins", "program_tables"]

_INDEXED = re.compile(r"([A-Za-z0-9_.]*?)\.?\b(\d+)(\.[A-Za-z0-9_.]+)?")
"""A path with a number in it: what stands before the first one, the number, and the rest."""


def program_tables(sharded: ShardedGraph) -> str:
    """All tables but the one of the blocks."""
    tables = [
        *_mesh_tables(sharded),
        *_execution(sharded),
        _inputs(sharded),
        _parameters(sharded),
        _outputs(sharded),
    ]
    return "\n".join(tables)


def _documented(table: str, meaning: str) -> str:
    return f'{table}\n"""{meaning}"""\n'


def _mesh_tables(sharded: ShardedGraph) -> Iterator[str]:
    sizes = [("pp", sharded.stage_ranks)] if sharded.stage_ranks > 1 else []
    sizes += [(identifier(axis.name), axis.size) for axis in sharded.axes]
    mesh = ", ".join(f"{quoted(name)}: {size}" for name, size in sizes)
    yield _documented(f"MESH = {{{mesh}}}", "Axes and their sizes, outermost first.")
    by_kind = {
        kind: _tuple(quoted(axis.name) for axis in sharded.axes if axis.kind == kind)
        for kind in ("replicate", "shard", "model")
    }
    yield _documented(
        f"REPLICATE_AXES = {by_kind['replicate']}\nSHARD_AXES = {by_kind['shard']}",
        "Axes whose ranks hold whole, or sharded, parameters at rest and add up their gradients.",
    )
    yield _documented(
        f"MODEL_AXES = {by_kind['model']}", "Axes along which parameters rest as they are used."
    )
    yield _documented(
        f"RANDOM_AXES = {_tuple(map(quoted, [name for name, _ in sizes[:1] if name == 'pp'] + _random_axes(sharded)))}",
        "Axes whose ranks draw different random numbers: every dropout is sharded over them.",
    )
    yield _documented(
        f"COMPUTE_DTYPE = torch.{_compute_dtype(sharded)}",
        "Dtype in which parameters are used; they rest in float32.",
    )


def _execution(sharded: ShardedGraph) -> Iterator[str]:
    """What is done beside the plain step, where something is."""
    stage = sharded.stages[0]
    microbatches = sharded.graph.microbatches
    if any(axis.kind == "shard" for axis in sharded.axes):
        yield _documented(
            f"ZERO = {stage.zero}",
            "Parameters are gathered once a step (1, 2) or for every use (3), gradients scattered once (1) or always.",
        )
    if has_recompute(sharded):
        yield _recompute(sharded)
    if output_joins(sharded):
        joins = _tuple(quoted(join) for join in output_joins(sharded))
        yield _documented(
            f"MICROBATCHES = {microbatches.count}\nJOINS = {joins}",
            "Slices of the batch that run one after the other, and how their outputs combine.",
        )


def has_recompute(sharded: ShardedGraph) -> bool:
    """True when some block computes something again in the backward."""
    return any(stage.recompute != "none" for stage in sharded.stages)


def output_joins(sharded: ShardedGraph) -> tuple[str, ...]:
    """How each output combines over microbatches; a pipeline asks even where there is one, a plain step does not."""
    if sharded.graph.microbatches.joins or sharded.stage_ranks == 1:
        return sharded.graph.microbatches.joins
    return tuple("cat 0" if sharded.graph.values[name].shape else "sum" for name in sharded.graph.outputs)


def _recompute(sharded: ShardedGraph) -> str:
    """``RECOMPUTE``: the level of every block that has one."""
    levels = {
        call.module: stage.recompute
        for stage in sharded.stages
        for call in sharded.graph.calls[stage.calls[0] : stage.calls[1] + 1]
        if call.module and stage.recompute != "none"
    }
    entries = [_Entry(path, "", f": {quoted(level)}") for path, level in levels.items()]
    lines = [line for run in _runs(entries) for line in run.lines(_as_mapping)]
    return _documented(
        "\n".join(["RECOMPUTE = {", *lines, "}"]), "What blocks compute again in the backward."
    )


def _inputs(sharded: ShardedGraph) -> str:
    lines = ["INPUTS = ["]
    microbatches = sharded.graph.microbatches
    for graph_input in sharded.graph.inputs:
        value, layout = graph_input.value, sharded.inputs[graph_input.value.name]
        if value.name in microbatches.counted:
            continue
        dim = microbatches.dims.get(value.name)
        shape = tuple(size * microbatches.count if at == dim else size for at, size in enumerate(value.shape))
        layout = _in_microbatches(layout, dim, microbatches.count)
        written = [_layout_text(layout, sharded), f"microbatch:S({dim})" if dim is not None else ""]
        lines.append(
            f"    Input({quoted(graph_input.path)}, {shape}, torch.{identifier(value.dtype)}, "
            f"{quoted(' '.join(filter(None, written)))}),"
        )
    meaning = "The batch: where the caller passes it, its global shape, and the layout that a rank reads."
    return _documented("\n".join([*lines, "]"]), meaning)


def _in_microbatches(layout: Layout, dim: int | None, count: int) -> Layout:
    """The layout of the whole batch whose microbatches, one after the other, have ``layout``."""
    return tuple(
        shard(dim, placement.blocks * count) if placement.is_shard and placement.dim == dim else placement
        for placement in layout
    )


def _parameters(sharded: ShardedGraph) -> str:
    stages = stages_of_parameters(sharded) if sharded.stage_ranks > 1 else {}
    entries = [
        _entry(parameter, sharded, stages.get(parameter.name)) for parameter in sharded.graph.parameters
    ]
    lines = [line for run in _runs(entries) for line in run.lines(_as_items)]
    meaning = (
        "Every parameter and buffer, and its layout at rest along the axes that operators shard it over."
    )
    return _documented("\n".join(["PARAMETERS = [", *lines, "]"]), meaning)


def _outputs(sharded: ShardedGraph) -> str:
    return _documented(f"OUTPUTS = {quoted(sharded.graph.output_tree)}", "How the outputs are packed.")


def blocks_table(blocks: Sequence[tuple[str, str]]) -> str:
    """``BLOCKS``, from (path of the module, class) pairs."""
    entries = [_Entry(path, "", f": {identifier(name)}") for path, name in blocks]
    lines = [line for run in _runs(entries) for line in run.lines(_as_mapping)]
    table = "\n".join(["BLOCKS = {", *lines, "}"]) if lines else "BLOCKS = {}"
    return _documented(table, "The class that each block runs as.")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a table around the literal of a path."""

    path: str
    before: str
    after: str

    def text(self, path: str) -> str:
        return f"{self.before}{path}{self.after}"


@dataclass(frozen=True, slots=True)
class _Run:
    """Entries that come again with the next number in their paths, ``first`` ≤ number < ``first + count``."""

    entries: tuple[_Entry, ...]
    first: int = 0
    count: int = 1

    def lines(self, loop: Callable[[_Run, list[str]], list[str]]) -> list[str]:
        if self.count == 1:
            return [f"    {entry.text(quoted(entry.path))}," for entry in self.entries]
        return loop(self, [entry.text(_numbered(entry.path)) for entry in self.entries])

    @property
    def range(self) -> str:
        last = self.first + self.count
        return f"range({last})" if self.first == 0 else f"range({self.first}, {last})"


def _as_items(run: _Run, texts: list[str]) -> list[str]:
    head = ["    *(", "        parameter", f"        for index in {run.range}", "        for parameter in ("]
    return [*head, *(f"            {text}," for text in texts), "        )", "    ),"]


def _as_mapping(run: _Run, texts: list[str]) -> list[str]:
    return [f"    **{{{text} for index in {run.range}}}," for text in texts]


def _runs(entries: Sequence[_Entry]) -> Iterator[_Run]:
    """The entries in order, repetitions folded."""
    groups = [(key, tuple(group)) for key, group in groupby(entries, key=lambda entry: _stem(entry.path))]
    while groups:
        (stem, first), count = groups[0], 1
        while count < len(groups) and stem is not None and _repeats(groups[count], stem, first, count):
            count += 1
        yield _Run(first, stem[1] if stem else 0, count)
        del groups[:count]


_Stem = tuple[str, int] | None


def _repeats(
    group: tuple[_Stem, tuple[_Entry, ...]], stem: tuple[str, int], first: Iterable[_Entry], by: int
) -> bool:
    """True when a group is the first one with ``by`` added to the number."""
    other, entries = group
    if other != (stem[0], stem[1] + by):
        return False
    return [entry.text(_numbered(entry.path)) for entry in entries] == [
        entry.text(_numbered(entry.path)) for entry in first
    ]


def _stem(path: str) -> _Stem:
    """What stands before the first number of a path, and the number; None for a path without one."""
    match = _INDEXED.fullmatch(path)
    return (match[1], int(match[2])) if match and str(int(match[2])) == match[2] else None


def _numbered(path: str) -> str:
    """The path as an f-string with ``index`` for its first number; it holds letters, digits and dots only."""
    match = _INDEXED.fullmatch(path)
    assert match is not None
    prefix = f"{match[1]}." if match[1] else ""
    return f'f"{prefix}{{index}}{match[3] or ""}"'


def _entry(parameter: GraphParameter, sharded: ShardedGraph, stages: tuple[int, ...] | None) -> _Entry:
    layout = sharded.parameters.get(parameter.alias_of or parameter.name, (REPLICATE,) * len(sharded.axes))
    written = _layout_text(layout, sharded)
    details = [
        str(parameter.shape),
        f"torch.{identifier(parameter.dtype)}",
        *([quoted(written)] if written else []),
    ]
    if parameter.is_buffer:
        details.append("is_buffer=True")
    elif not parameter.requires_grad:
        details.append("requires_grad=False")
    if not parameter.is_persistent:
        details.append("is_persistent=False")
    if parameter.alias_of:
        details.append(f"alias_of={quoted(parameter.alias_of)}")
    if stages is not None:
        details.append(f"stages={stages}")
    return _Entry(parameter.name, "Parameter(", f", {', '.join(details)})")


def _tuple(items: Iterable[str]) -> str:
    listed = list(items)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _layout_text(layout: Layout, sharded: ShardedGraph) -> str:
    """Only what is sharded: the rest is replicated, or the data-parallel engine's business."""
    shown = [(a, p) for a, p in zip(sharded.axis_names, layout, strict=True) if p.is_shard]
    return format_layout(tuple(p for _, p in shown), tuple(a for a, _ in shown))


def _compute_dtype(sharded: ShardedGraph) -> str:
    """The narrowest dtype in which a trained parameter is used."""
    used = {
        segment.values[parameter.value].dtype
        for segment in sharded.graph.types
        for parameter in segment.parameters
        if not parameter.is_buffer and segment.values[parameter.value].requires_grad
    }
    return next((dtype for dtype in ("bfloat16", "float16") if dtype in used), "float32")


_RANDOM = ("dropout", "rand", "bernoulli", "normal", "multinomial")


def _random_axes(sharded: ShardedGraph) -> list[str]:
    """Axes along which every random operator's result is sharded; all data axes when there is none."""
    layouts = [
        strategy.results[0]
        for segment in sharded.graph.types
        for operator in segment.operators
        for strategy in [sharded.strategies[segment.name, operator.name]]
        if any(word in operator.target for word in _RANDOM)
        or (operator.target.startswith("aten.scaled_dot_product") and any(a for a in operator.arguments[4:5]))
    ]
    if not layouts:
        return [axis.name for axis in sharded.axes if axis.is_data]
    return [
        axis.name
        for position, axis in enumerate(sharded.axes)
        if all(layout[position].is_shard for layout in layouts)
    ]
