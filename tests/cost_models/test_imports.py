"""``cost_models`` stands alone: no torch, no autopar, no solver."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import cost_models

FOLDER = Path(cost_models.__file__).parent
MODULES = sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order of the linter."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_torch_autopar_or_solver(name: str) -> None:
    assert imported(FOLDER / f"{name}.py").isdisjoint({"torch", "autopar", "solver"})


@pytest.mark.parametrize("name", MODULES)
def test_every_module_lists_its_names_sorted(name: str) -> None:
    module = importlib.import_module(f"cost_models.{name}")
    assert list(module.__all__) == sorted(module.__all__, key=_order)
    assert all(hasattr(module, public) for public in module.__all__)
