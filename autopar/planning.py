"""From a module and a cluster to a plan, and from a plan to a program: the compiler in two functions.

Capturing a module needs torch, and searching needs the solver: both are imported then, since a program is made of
a plan without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopar._version import __version__
from autopar.capture import fingerprint
from autopar.capture.graph import Graph
from autopar.clusters import cluster_of_plan, profile_lines
from autopar.codegen.program import program_source
from autopar.errors import PinError, PlanMismatchError
from autopar.plan.schema import OBJECTIVES, OPTIMIZERS, PRECISIONS, Plan
from autopar.planner.assemble import Question, make_plan
from autopar.planner.pins import Pins, parse_pins
from autopar.planner.restore import restore
from cost_models.cluster import Cluster

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PlanOptions", "check_model", "check_options", "generate_program", "plan_graph", "plan_model"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a user may ask of a plan beside model, batch and cluster."""

    pins: str = ""
    """``tp=2,dp_shard=4``"""
    memory_bytes: int | None = None
    """Limit per device; the device's capacity where None."""
    optimizer: str = "adamw"
    precision: str = "fp32"
    source: str = ""
    """MODEL as written on the command line, for the plan to repeat."""
    objective: str = "time"
    """``time``, ``memory`` or ``throughput-per-device``."""
    compile: bool | None = None
    """Whether blocks and the loss head go through ``torch.compile``; on GPUs, not on CPUs, where None."""


def plan_model(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    cluster: Cluster,
    options: PlanOptions,
) -> Plan:
    """The best plan to train ``module`` on inputs like ``args`` and ``kwargs`` (the global batch) on ``cluster``.

    Raises ``CaptureError``, ``PinError`` or ``InfeasiblePlanError``.
    """
    from autopar.capture.precision import capture_in

    pins = check_options(options)
    graph = capture_in(options.precision, module, args, dict(kwargs))
    return _plan(graph, cluster, options, pins)


def plan_graph(graph: Graph, cluster: Cluster, options: PlanOptions) -> Plan:
    """The same for a graph that is already captured."""
    return _plan(graph, cluster, options, check_options(options))


def check_options(options: PlanOptions) -> Pins:
    """The pins among the options. Raises ``PinError`` naming an option that nobody knows."""
    pins = parse_pins(options.pins)
    known = {"optimizer": OPTIMIZERS, "precision": PRECISIONS, "objective": OBJECTIVES}
    for name, legal in known.items():
        value = getattr(options, name)
        if value not in legal:
            raise PinError(f"{name} '{value}' is unknown: known are {', '.join(legal)}")
    return pins


def _plan(graph: Graph, cluster: Cluster, options: PlanOptions, pins: Pins) -> Plan:
    from autopar.planner.objectives import search_for
    from autopar.planner.search import Options

    is_compiled = cluster.device.kind == "cuda" if options.compile is None else options.compile
    asked = Options(pins, options.memory_bytes, is_compiled=is_compiled)
    found, cluster = search_for(options.objective, graph, cluster, asked)
    question = Question(
        source=options.source,
        fingerprint=fingerprint(graph),
        cluster=cluster,
        memory_limit_bytes=options.memory_bytes or cluster.device.memory_bytes,
        precision=options.precision,
        optimizer=options.optimizer,
        pins=str(pins),
        version=__version__,
        compile=is_compiled,
        profile=tuple(profile_lines(cluster)),
    )
    return make_plan(graph, question, found)


def generate_program(plan: Plan) -> str:
    """The program of a plan as Python source. Raises ``PlanError`` for plans that do not hang together."""
    _, realized = restore(plan, cluster_of_plan(plan))
    mesh = " × ".join(f"{axis.axis} {axis.size}" for axis in plan.mesh) or "one device"
    title = f"{plan.model.name} on {plan.cluster.name} ({mesh})."
    return program_source(realized.sharded, title, is_compiled=plan.training.compile)


def check_model(plan: Plan, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ``PlanMismatchError`` unless ``plan`` was made for this module and inputs of these shapes."""
    from autopar.capture.precision import capture_in

    graph = capture_in(plan.training.precision, module, args, dict(kwargs))
    if fingerprint(graph) != plan.model.fingerprint:
        raise PlanMismatchError(_difference(plan, graph))


def _difference(plan: Plan, graph: Graph) -> str:
    """What differs, as far as inputs and parameters tell."""
    wanted = {entry.path: entry.tensor for entry in plan.inputs if entry.name not in plan.schedule.counted}
    given = {i.path: f"{i.value.dtype}{list(i.value.shape)}" for i in graph.inputs}
    for path in {**wanted, **given}:
        tensor = wanted.get(path, "nothing").removesuffix(" grad")
        if tensor != given.get(path, "nothing"):
            return (
                f"the plan is for input '{path}' of {tensor}, the model got {given.get(path, 'nothing')}. "
                "Use inputs of the planned shape, or plan again."
            )
    planned = {entry.name: entry.tensor.removesuffix(" grad") for entry in plan.parameters}
    found = {p.name: f"{p.dtype}{list(p.shape)}" for p in graph.parameters}
    for name in {**planned, **found}:
        if planned.get(name) != found.get(name):
            return (
                f"the plan is for another model ({plan.model.name}): parameter {name} is "
                f"{planned.get(name, 'absent')} in the plan and {found.get(name, 'absent')} in this {graph.name}. "
                "Plan this model."
            )
    return f"the plan was made for another version of {plan.model.name}: its forward differs. Plan again."
