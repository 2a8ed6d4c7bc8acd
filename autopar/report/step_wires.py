"""What stages send each other for one microbatch, and how long it takes."""

from __future__ import annotations

from math import prod

from autopar.report.anatomy import Anatomy
from autopar.shardings.placement import local_shape
from cost_models.collectives import send_s
from cost_models.dtypes import dtype_bytes

__all__ = ["wire_bytes", "wires_s"]


def wires_s(opened: Anatomy) -> tuple[float, ...]:
    """Seconds of one way across each cut between stages: everything that is made before it and read behind it."""
    links, stages = opened.prices.stage_links, opened.sharded.stages
    return tuple(
        send_s(wire_bytes(stage.calls[1], opened), links[place % len(links)])
        for place, stage in enumerate(stages[:-1])
    )


def wire_bytes(last_call: int, opened: Anatomy, *, only_gradients: bool = False) -> int:
    """What goes across a cut behind a segment call, as one rank holds it; the gradients that come back, if asked."""
    graph, sharded = opened.sharded.graph, opened.sharded
    made = {name for call in graph.calls[: last_call + 1] for name in call.results}
    read = {name for call in graph.calls[last_call + 1 :] for name in call.arguments} | set(graph.outputs)
    return sum(
        prod(local_shape(graph.values[name].shape, sharded.made_layout(name), sharded.sizes))
        * dtype_bytes(graph.values[name].dtype)
        for name in made & read
        if graph.values[name].requires_grad or not only_gradients
    )
