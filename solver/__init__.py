"""Pure optimisation: one strategy per node at least cost, within a limit on usage. Knows no torch."""

from solver.exhaustive import solve_by_enumeration
from solver.methods import smallest_usage, solve
from solver.problem import Edge, Fan, InvalidProblemError, Node, Price, Problem, evaluate
from solver.solution import Solution, Status

__all__ = [
    "Edge",
    "Fan",
    "InvalidProblemError",
    "Node",
    "Price",
    "Problem",
    "Solution",
    "Status",
    "evaluate",
    "smallest_usage",
    "solve",
    "solve_by_enumeration",
]
