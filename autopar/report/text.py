"""A plan as text for people: what every axis does, where time and memory go, what else was tried."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from autopar.plan.schema import MemoryEntry, OperatorEntry, Plan, SegmentTypeEntry
from autopar.report.anatomy import NOTHING, PARTIAL, ROLES, Anatomy, anatomy
from autopar.report.communication import SILENT, Exchange, exchanges
from autopar.report.stages_text import execution_text, stage_memory_table, stages_table
from autopar.report.units import plain, show_bytes, show_count, show_flops, show_seconds, show_share
from cost_models.cluster import Cluster

__all__ = ["MEMORY_CATEGORIES", "summary"]

NAMES_SHOWN = 6
"""Operators named where more do the same."""
TELLING_SHARE = 0.005
"""Of all operators' time: what one that all ranks repeat must take to be listed."""

MEMORY_CATEGORIES: dict[str, str] = {
    "parameters_bytes": "parameters",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer state",
    "gathered_bytes": "gathered parameters",
    "activations_bytes": "saved activations",
    "temporaries_bytes": "temporaries",
    "overhead_bytes": "context and buffers",
}
"""Fields of a plan's memory, in words."""

ROLE_STYLES = {
    "batch": "cyan",
    "sequence": "blue",
    "column": "green",
    "row": "yellow",
    "vocabulary": "magenta",
    "features": "bright_green",
    "partial": "bright_yellow",
    "replicated": "dim",
}


def summary(plan: Plan, *, cluster: Cluster | None = None, is_full: bool = False) -> RenderableType:
    """The whole plan, laid out; every operator if ``is_full``. Raises ``PlanError`` for a broken plan."""
    opened = anatomy(plan, cluster)
    return Group(
        _headline(opened),
        *_stages(plan),
        Rule("What each axis does", align="left", style="dim"),
        *_axes(opened),
        Rule("Operators", align="left", style="dim"),
        *_operators(opened, is_full=is_full),
        Rule("Parameters at rest", align="left", style="dim"),
        _parameters(opened.plan),
        Rule("Communication of one step", align="left", style="dim"),
        _communication(opened),
        Rule("Memory of one device", align="left", style="dim"),
        _memory(opened.plan),
        Rule("The search", align="left", style="dim"),
        *_search(opened.plan),
        *_notes(opened.plan),
    )


def _headline(opened: Anatomy) -> RenderableType:
    plan = opened.plan
    model, cluster, training, predicted = plan.model, plan.cluster, plan.training, plan.predicted
    source = f" ({plain(model.source)})" if model.source else ""
    lines = [
        ("model", f"{plain(model.name)}{source}: {show_count(model.parameters)} parameters"),
        (
            "training",
            f"{training.global_batch} in a global batch, {training.tokens:,} tokens, {training.precision}, "
            f"{training.optimizer}, {show_flops(model.flops)} a step",
        ),
        ("cluster", _cluster(plan)),
        ("mesh", _mesh(plan) + (f"   (pinned: {plain(plan.pins)})" if plan.pins else "")),
        ("execution", execution_text(plan)),
    ]
    grid = Table.grid(padding=(0, 2))
    for label, text in lines:
        grid.add_row(Text(label, style="dim"), Text(text))
    memory = f"{show_bytes(predicted.peak_memory_bytes)} of {show_bytes(cluster.memory_limit_bytes)}"
    figures = Text.assemble(
        (show_seconds(predicted.step_time_s), "bold"),
        " a step" + _host_note(plan) + "   ",
        (f"{show_count(predicted.tokens_per_s)} tokens/s", "bold"),
        "   ",
        (show_share(predicted.mfu), "bold"),
        " MFU   peak memory ",
        (memory, "bold"),
    )
    grid.add_row(Text("predicted", style="dim"), figures)
    grid.add_row(Text("of which", style="dim"), Text(_breakdown(opened)))
    return Panel(
        grid, title=f"autopar plan: {plain(model.name)} on {plain(cluster.name)}", title_align="left"
    )


def _stages(plan: Plan) -> Iterator[RenderableType]:
    if len(plan.stages) > 1:
        yield Rule("Stages", align="left", style="dim")
        yield stages_table(plan)


def _host_note(plan: Plan) -> str:
    """Where the host, which issues the kernels, may be the limit: the range that a step lies in."""
    predicted = plan.predicted
    if predicted.limit != "host":
        return ""
    low, high = show_seconds(predicted.step_time_low_s), show_seconds(predicted.step_time_high_s)
    return f" ({low} to {high}: the host that issues the kernels is the limit)"


def _breakdown(opened: Anatomy) -> str:
    """Where the step's time goes."""
    realized = opened.realized
    optimizer_s = sum(realized.upkeep_s.values()) - realized.traffic_s
    predicted = opened.plan.predicted
    ranks = len(predicted.memory)
    parts = [
        (realized.operator_s / ranks, "operators"),
        (predicted.exposed_communication_s, "exposed communication"),
        (optimizer_s / ranks, "optimizer"),
    ]
    if predicted.bubble_fraction:
        parts.append((predicted.bubble_fraction * predicted.step_time_s, "pipeline bubble"))
    return ", ".join(f"{show_seconds(seconds)} {label}" for seconds, label in parts)


def _cluster(plan: Plan) -> str:
    cluster = plan.cluster
    nodes = f"{cluster.nodes} nodes × " if cluster.nodes > 1 else ""
    return f"{plain(cluster.name)}: {nodes}{cluster.devices_per_node} {plain(cluster.device)}"


def _mesh(plan: Plan) -> str:
    return " × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh) or "one device"


def _axes(opened: Anatomy) -> Iterator[RenderableType]:
    """Lines on each axis: the operators it splits, by role, dearest first, and what it does to parameters."""
    if not opened.sharded.axes:
        yield Text("one device: nothing is split")
        return
    total_s = max(opened.realized.operator_s, 1e-30)
    grid = Table.grid(padding=(0, 2))
    for position, axis in enumerate(opened.sharded.axes):
        label = f"{axis.name} {axis.size}"
        seconds, names = _by_role(opened, position)
        for role in ROLES:
            if role in names and role not in (NOTHING, PARTIAL):
                share = f"{100 * seconds[role] / total_s:.0f} % of compute"
                grid.add_row(
                    Text(label, style="bold"), Text(role, style=ROLE_STYLES[role]), share, names[role]
                )
                label = ""
        grid.add_row(
            Text(label, style="bold"), Text("parameters", style="dim"), "", Text(_KIND_TEXTS[axis.kind])
        )
    yield grid


_KIND_TEXTS = {
    "model": "rest as operators use them",
    "replicate": "replicated; gradients are summed",
    "shard": "sharded at rest; gathered for use, gradients summed and scattered",
}


def _by_role(opened: Anatomy, position: int) -> tuple[dict[str, float], dict[str, Text]]:
    """Seconds and names of the operators to which an axis does the same."""
    found: dict[str, dict[str, float]] = {}
    counts = opened.counts
    for type_name, planned in opened.types.items():
        for operator in planned.operators:
            by_name = found.setdefault(opened.roles(type_name, operator)[position], {})
            seconds = counts[type_name] * opened.realized.operators[type_name, operator.name].seconds
            by_name[operator.name] = by_name.get(operator.name, 0.0) + seconds
    dearest = {role: sorted(by_name, key=lambda name: -by_name[name]) for role, by_name in found.items()}
    sums = {role: sum(by_name.values()) for role, by_name in found.items()}
    return sums, {role: _named(names) for role, names in dearest.items()}


def _named(names: list[str]) -> Text:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return Text(", ".join(plain(name) for name in names[:NAMES_SHOWN]) + more)


def _operators(opened: Anatomy, *, is_full: bool) -> Iterator[RenderableType]:
    """A table for each segment type."""
    for segment in opened.plan.segments:
        shown = [each for each in segment.operators if is_full or _is_telling(opened, segment, each)]
        table = _table()
        table.add_column("operator", no_wrap=True)
        for axis in opened.sharded.axes:
            table.add_column(f"{axis.name} {axis.size}", no_wrap=True)
        table.title, table.title_justify, table.title_style = _segment_title(segment), "left", "bold"
        table.add_column("forward", justify="right", no_wrap=True)
        table.add_column("backward", justify="right", no_wrap=True)
        table.add_column("source", no_wrap=True, ratio=1)
        table.expand = True
        for operator in shown:
            table.add_row(*_operator_row(opened, segment, operator))
        yield table
        if len(shown) < len(segment.operators):
            hidden = len(segment.operators) - len(shown)
            yield Text(f"and {hidden} that cost nothing, or little on every rank alike\n", style="dim")


def _is_telling(opened: Anatomy, segment: SegmentTypeEntry, operator: OperatorEntry) -> bool:
    """False for views, and for small operators that all ranks repeat."""
    seconds = operator.forward_s + operator.backward_s
    roles = opened.roles(segment.name, opened.operator(segment.name, operator.name))
    is_small = segment.count * seconds < TELLING_SHARE * opened.realized.operator_s
    return seconds > 0 and not (is_small and all(role == NOTHING for role in roles))


def _segment_title(segment: SegmentTypeEntry) -> Text:
    seconds = sum(operator.forward_s + operator.backward_s for operator in segment.operators)
    times = f" × {segment.count}" if segment.count > 1 else ""
    return Text(f"{plain(segment.name)}{times}: {show_seconds(seconds * segment.count)} of operators a step")


def _operator_row(opened: Anatomy, segment: SegmentTypeEntry, operator: OperatorEntry) -> list[Text]:
    roles = opened.roles(segment.name, opened.operator(segment.name, operator.name))
    strategy = opened.sharded.strategies[segment.name, operator.name]
    results = strategy.results[0] if strategy.results else ()
    cells = [_role_cell(role, str(made)) for role, made in zip(roles, results, strict=True)]
    call = plain(operator.call.removeprefix("aten.").split(".")[0])
    name = plain(operator.name)
    head = Text.assemble(name, ("" if name.startswith(call) else f"  {call}", "dim"))
    times = [
        show_seconds(seconds) if seconds else "–" for seconds in (operator.forward_s, operator.backward_s)
    ]
    return [head, *cells, *map(Text, times), Text(plain(operator.source), style="dim")]


def _role_cell(role: str, result: str) -> Text:
    if role == NOTHING:
        return Text("–" if result == "R" else f"– → {result}", style="dim")
    return Text.assemble((role, ROLE_STYLES[role]), (f" → {result}", "dim"))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column)
    return table


def _parameters(plan: Plan) -> RenderableType:
    """One row for all parameters that differ only in numbers in their names."""
    table = _table("parameter")
    table.add_column("count", justify="right")
    table.add_column("tensor")
    table.add_column("at rest")
    groups: dict[tuple[str, str, str, str], int] = {}
    for entry in plan.parameters:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", entry.name)
        tied = f"tied to {entry.alias_of}" if entry.alias_of else ""
        kind = entry.kind if entry.kind != "parameter" else ""
        key = (
            pattern,
            entry.tensor.removesuffix(" grad"),
            entry.layout,
            ", ".join(filter(None, (tied, kind))),
        )
        groups[key] = groups.get(key, 0) + 1
    data = " ".join(f"{axis.axis}:{axis.parameters}" for axis in plan.mesh if axis.parameters == "shard")
    for (pattern, tensor, layout, remark), count in groups.items():
        where = " ".join(filter(None, (layout, "" if remark.startswith("tied") else data))) or "replicated"
        table.add_row(plain(pattern), str(count), plain(tensor), _with_remark(where, remark))
    return table


def _with_remark(text: str, remark: str) -> Text:
    return Text.assemble(plain(text), (f"  {plain(remark)}" if remark else "", "dim"))


def _communication(opened: Anatomy) -> RenderableType:
    found = exchanges(opened)
    if not found:
        return Text("nothing is sent")
    table = _table("tensor", "conversion", "forward", "backward")
    for name in ("times", "bytes", "time"):
        table.add_column(name, justify="right")
    for exchange in found:
        table.add_row(*_exchange_row(exchange))
    seconds = sum(exchange.seconds for exchange in found)
    exposed_s = opened.plan.predicted.exposed_communication_s
    table.add_section()
    sent = show_bytes(sum(exchange.sent_bytes for exchange in found))
    table.add_row(
        "all", f"exposed {show_seconds(exposed_s)}", "", "", "", sent, show_seconds(seconds), style="bold"
    )
    return table


def _exchange_row(exchange: Exchange) -> list[Text]:
    name = f"{exchange.segment}.{exchange.tensor}" if exchange.segment else exchange.tensor
    forward = _collectives((hop.axis, hop.forward) for hop in exchange.hops)
    backward = _collectives((hop.axis, hop.backward) for hop in reversed(exchange.hops))
    sent = show_bytes(exchange.sent_bytes) if exchange.sent_bytes else "–"
    return [
        Text(plain(name)),
        Text(exchange.change, style="dim"),
        Text(forward),
        Text(backward),
        Text(str(exchange.count)),
        Text(sent),
        Text(show_seconds(exchange.seconds)),
    ]


def _collectives(hops: Iterable[tuple[str, str]]) -> str:
    return (
        ", ".join(name if name in SILENT else f"{name} {axis}" for axis, name in hops if name != "nothing")
        or "–"
    )


def _memory(plan: Plan) -> RenderableType:
    if len(plan.predicted.memory) > 1:
        return stage_memory_table(plan, MEMORY_CATEGORIES)
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column()
    for entry in plan.predicted.memory:
        total = max(1, _total(entry))
        for field, label in MEMORY_CATEGORIES.items():
            size_bytes = getattr(entry, field)
            if size_bytes:
                bar = Text("█" * max(1, round(40 * size_bytes / total)), style="cyan")
                grid.add_row(label, show_bytes(size_bytes), bar)
        limit = plan.cluster.memory_limit_bytes
        share = f"{show_share(total / limit)} of {show_bytes(limit)}"
        grid.add_row(Text("peak", style="bold"), Text(show_bytes(total), style="bold"), share)
    return grid


def _total(entry: MemoryEntry) -> int:
    return sum(getattr(entry, field) for field in MEMORY_CATEGORIES)


def _execution(plan: Plan) -> Iterator[str]:
    """How the plan is run, as far as it is not the plain way, in the words of its runner-ups."""
    if len(plan.stages) > 1:
        yield plan.schedule.name
    if any(axis.parameters == "shard" for axis in plan.mesh):
        yield f"zero {plan.stages[0].zero}"
    levels = dict.fromkeys(stage.recompute for stage in plan.stages)
    if levels.keys() - {"none"}:
        yield f"recompute {'/'.join(levels)}"
    if plan.schedule.microbatches > 1:
        yield f"{plan.schedule.microbatches} microbatches"


def _search(plan: Plan) -> Iterator[RenderableType]:
    solver = plan.solver
    yield Text(
        f"{solver.status} by {solver.method} in {show_seconds(solver.wall_s)}: objective "
        f"{show_seconds(solver.objective_s)}, lower bound {show_seconds(solver.lower_bound_s)}, "
        f"gap {show_share(solver.gap)}"
    )
    if not solver.candidates:
        return
    table = _table("best plan on mesh")
    for name in ("step", "against the plan", "peak memory"):
        table.add_column(name, justify="right")
    chosen = plan.predicted
    table.add_row(
        ", ".join([_mesh(plan), *_execution(plan)]),
        show_seconds(chosen.step_time_s),
        "chosen",
        show_bytes(chosen.peak_memory_bytes),
        style="bold",
    )
    for candidate in solver.candidates:
        more = candidate.step_time_s / chosen.step_time_s - 1 if chosen.step_time_s else 0.0
        table.add_row(
            Text(plain(candidate.mesh)),
            ("≈ " if candidate.is_estimate else "") + show_seconds(candidate.step_time_s),
            f"{100 * more:+.1f} %",
            show_bytes(candidate.peak_memory_bytes),
        )
    yield table


def _notes(plan: Plan) -> Iterator[RenderableType]:
    if plan.notes:
        yield Rule("Notes", align="left", style="dim")
    for note in plan.notes:
        yield Text(f"• {plain(note)}")
