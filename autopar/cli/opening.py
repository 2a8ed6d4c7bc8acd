"""A plan file as the commands take it: read, checked, its figures made again from its decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autopar.plan.schema import Plan

__all__ = ["open_plan"]


def open_plan(path: Path) -> Plan:
    """The plan in a file, edited by hand or not.

    Raises ``PlanError`` naming what is wrong, down to the operator whose strategy is impossible.
    """
    from autopar.clusters import cluster_of_plan
    from autopar.plan.files import read_plan
    from autopar.planner.restore import restore

    saved = read_plan(path)
    plan, _ = restore(saved, cluster_of_plan(saved))
    return plan
