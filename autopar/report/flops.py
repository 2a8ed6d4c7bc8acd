"""How much of a device's peak a step uses: MFU by the model's FLOPs, HFU by those that run.

MFU = model FLOPs / (step seconds × devices × peak FLOP/s of the compute dtype), after Chowdhery et al. (PaLM, 2022,
appendix B). Model FLOPs are those of matrix products (6 for each weight and token) and attention of the whole batch,
forward and backward, as kernels do them: a causal mask halves attention, whose backward is 2.5 forwards. HFU adds
what recomputation runs again: the forward of every block that is recomputed in full; selective recomputation keeps
products and attention.
"""

from __future__ import annotations

from autopar.plan.graphs import graph_of
from autopar.plan.schema import Plan
from autopar.planner.work import works
from autopar.shardings.calls import Call

__all__ = ["hardware_flops"]

COUNTED = ("matmul", "attention")
"""Families of operators whose FLOPs count."""


def hardware_flops(plan: Plan) -> float:
    """FLOPs that the devices run in a step, recomputation included."""
    forward = _forward_flops(plan)
    again = sum(
        forward[call.type]
        for stage in plan.stages
        if stage.recompute == "full"
        for call in stage.segments
        if call.module
    )
    return plan.model.flops + plan.schedule.microbatches * again


def _forward_flops(plan: Plan) -> dict[str, float]:
    """Of one call of each segment type on one microbatch, all ranks together."""
    found = {}
    for segment in graph_of(plan).types:
        flops = 0.0
        for operator in segment.operators:
            call = Call(operator, segment.values)
            results = [value.shape if value is not None else () for value in call.results]
            work, _ = works(call, [value.shape for value in call.operands], results)
            flops += work.flops if work.family in COUNTED else 0.0
        found[segment.name] = flops
    return found
