"""The solver stands alone: it imports neither torch nor the other packages of this repository."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import solver

FORBIDDEN = {"torch", "autopar", "cost_models"}
MILP = {"pulp", "highspy"}
MILP_FILES = {"highs.py", "planning_ilp.py", "sparse_ilp.py"}
FILES = sorted(Path(solver.__file__).parent.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_no_file_imports_what_it_must_not_know() -> None:
    for path in FILES:
        assert not imported(path) & FORBIDDEN, path.name
        assert path.name in MILP_FILES or not imported(path) & MILP, path.name


def test_importing_the_solver_loads_no_torch() -> None:
    code = "import sys, solver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FILES[0].parents[1]).returncode == 0


def test_public_names_are_sorted_and_exist() -> None:
    assert solver.__all__ == sorted(solver.__all__)
    assert all(hasattr(solver, name) for name in solver.__all__)
