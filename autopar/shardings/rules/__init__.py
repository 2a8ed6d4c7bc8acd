"""The declared sharding rules, by operator: ``loops_of(call)`` is the loop nest of any call.

An operator without a rule is no error: ``loops_of`` returns None and it runs replicated.
"""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.rules import (
    attention,
    losses,
    matmul,
    normalization,
    pointwise,
    reductions,
    views,
    writing,
)
from autopar.shardings.rules.declaration import Rule

__all__ = ["RULES", "loops_of"]

RULES: dict[str, Rule] = {
    target: rule
    for module in (attention, losses, matmul, normalization, pointwise, reductions, views, writing)
    for target, rule in module.RULES.items()
}
"""Every declared rule by ATen target."""


def loops_of(call: Call) -> Loops | None:
    """The loop nest of a call; None for an operator that nobody declared, or a form that the rule refuses."""
    rule = RULES.get(call.operator.target)
    return rule(call) if rule else None
