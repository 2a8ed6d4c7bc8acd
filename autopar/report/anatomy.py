"""A plan opened up for reports: its sharded graph, prices, and what each axis does to each operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autopar.clusters import cluster_of_plan
from autopar.plan.schema import Plan
from autopar.planner.execution import RECOMPUTE_LEVELS, Execution
from autopar.planner.labels import BATCH, SEQUENCE, label_of_choice
from autopar.planner.mesh import MeshAxis
from autopar.planner.operators import PlannedOperator, PlannedType, planned_types
from autopar.planner.prices import Prices
from autopar.planner.realize import Realized
from autopar.planner.restore import restore
from autopar.shardings.sharded import ShardedGraph
from cost_models.cluster import Cluster

__all__ = ["ROLES", "Anatomy", "anatomy"]

COLUMN, ROW, VOCABULARY, FEATURES, PARTIAL, NOTHING = (
    "column",
    "row",
    "vocabulary",
    "features",
    "partial",
    "replicated",
)

ROLES: dict[str, str] = {
    BATCH: "splits the batch",
    SEQUENCE: "splits the sequence",
    COLUMN: "splits a weight by its outputs",
    ROW: "splits a weight by its inputs; leaves a partial sum",
    VOCABULARY: "splits the vocabulary",
    FEATURES: "splits heads or features of an activation",
    PARTIAL: "passes a partial sum on",
    NOTHING: "all ranks do the same",
}
"""What an axis may do to an operator, and what that means."""

_VOCABULARY_OPERATORS = ("embedding", "cross_entropy_loss")


@dataclass(frozen=True)
class Anatomy:
    """A plan with everything that follows from its decisions."""

    plan: Plan
    """The figures made again."""
    realized: Realized
    prices: Prices
    types: Mapping[str, PlannedType]

    @property
    def sharded(self) -> ShardedGraph:
        return self.realized.sharded

    @property
    def counts(self) -> Counter[str]:
        """Calls of each segment type."""
        return Counter(call.type for call in self.sharded.graph.calls)

    def operator(self, type_name: str, name: str) -> PlannedOperator:
        """Raises ``KeyError`` naming what is there."""
        found = {operator.name: operator for operator in self.types[type_name].operators}
        if name not in found:
            raise KeyError(f"{type_name} has no operator {name!r}: it has {', '.join(found)}")
        return found[name]

    def roles(self, type_name: str, operator: PlannedOperator) -> tuple[str, ...]:
        """What each axis does to an operator under the plan: a key of ``ROLES`` each."""
        names = self.sharded.strategies[type_name, operator.name].names
        return tuple(self.role(type_name, operator, name) for name in names)

    def role(self, type_name: str, operator: PlannedOperator, name: str) -> str:
        """The role of an axis that makes the choice called ``name``."""
        choice = next(choice for choice in operator.choices if choice.name == name)
        if not choice.factor:
            return PARTIAL if any(placement.kind == "P" for placement in choice.results) else NOTHING
        label = label_of_choice(operator.call, choice, self.types[type_name].labels)
        if label:
            return label
        if choice.factor == "v" and operator.call.operator.target.split(".")[1] in _VOCABULARY_OPERATORS:
            return VOCABULARY
        if any(choice.operands[place].is_shard for place in operator.parameters):
            return ROW if any(placement.kind == "P" for placement in choice.results) else COLUMN
        return FEATURES


def anatomy(plan: Plan, cluster: Cluster | None = None) -> Anatomy:
    """Opens a plan made for ``cluster``, by default the one it names. Raises ``PlanError`` if broken."""
    cluster = cluster or cluster_of_plan(plan)
    updated, realized = restore(plan, cluster)
    sharded = realized.sharded
    axes = tuple(MeshAxis(axis.size, axis.kind) for axis in sharded.axes)
    prices = Prices(cluster, axes, execution=_execution(plan, sharded))
    return Anatomy(updated, realized, prices, planned_types(sharded.graph))


def _execution(plan: Plan, sharded: ShardedGraph) -> Execution:
    """How the whole program runs; of stages that recompute differently, as the one that does it least."""
    return Execution(
        plan.training.compile,
        min((stage.recompute for stage in sharded.stages), key=RECOMPUTE_LEVELS.index),
        sharded.graph.microbatches.count,
        sharded.stages[0].zero,
        sharded.stage_ranks,
    )
