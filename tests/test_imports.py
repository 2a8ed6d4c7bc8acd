"""Who may import whom, where torch's private names may be used, and what modules declare public."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for top in ("autopar", "cost_models", "solver") for path in (ROOT / top).rglob("*.py"))

LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "torch_private": set(),
    "capture": {"errors", "torch_private"},
    "models": {"errors"},
    "shardings": {"capture"},
    "plan": {"capture", "errors", "shardings"},
    "clusters": {"cost_models", "errors", "plan"},
    "planner": {"capture", "cost_models", "errors", "plan", "shardings", "solver"},
    "codegen": {"capture", "errors", "shardings"},
    "runtime": {"errors", "torch_private"},
    "measure": {"cost_models", "errors", "models", "torch_private"},
    "planning": {
        "_version",
        "capture",
        "clusters",
        "codegen",
        "cost_models",
        "errors",
        "plan",
        "planner",
    },
    "world": {"errors"},
    "parallel": {"clusters", "errors", "plan", "planning", "runtime", "torch_private", "world"},
    "report": {"capture", "clusters", "cost_models", "errors", "plan", "planner", "shardings"},
    "cli": {
        "capture",
        "clusters",
        "cost_models",
        "errors",
        "measure",
        "models",
        "parallel",
        "plan",
        "planner",
        "planning",
        "report",
        "runtime",
    },
    "__init__": {"_version", "parallel", "plan"},
    "cost_models": set(),
    "solver": set(),
}
"""What each part of the house may import of the others; the parts of ``autopar`` go without their prefix."""

LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "torch_private": {"torch"},
    "capture": {"torch"},
    "models": {"torch", "transformers"},
    "shardings": {"numpy"},
    "plan": {"msgspec"},
    "clusters": {"torch"},
    "planner": {"msgspec", "numpy"},
    "codegen": set(),
    "runtime": {"torch"},
    "measure": {"numpy", "rich", "torch"},
    "planning": {"torch"},
    "world": {"torch"},
    "parallel": {"torch"},
    "report": {"matplotlib", "numpy", "rich"},
    "cli": {"msgspec", "rich", "torch", "typer"},
    "__init__": set(),
    "cost_models": {"numpy"},
    "solver": {"highspy", "numpy", "pulp"},
}
"""What each part may import from outside, beside the standard library."""


def part_of(module: str) -> str:
    """The part of the house a module belongs to; other packages are their own name."""
    names = module.split(".")
    if names[0] != "autopar":
        return names[0]
    return names[1] if len(names) > 1 else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "autopar" else {str(node.module)}
    return found


ids = {"ids": lambda path: str(path.relative_to(ROOT))}


@pytest.mark.parametrize("path", FILES, **ids)
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    mine = part_of(module_of(path))
    assert mine in LAYERS, f"say in LAYERS and LIBRARIES what autopar.{mine} may import"
    for module in imports_of(path):
        part = part_of(module)
        if part in LAYERS and (module.startswith("autopar") or part in ("cost_models", "solver")):
            assert part == mine or part in LAYERS[mine], f"{path} imports {module}"
        else:
            assert part in LIBRARIES[mine] or part in sys.stdlib_module_names, f"{path} imports {module}"


def test_parts_form_layers() -> None:
    """No part can reach itself over others."""

    def reached(part: str, seen: frozenset[str]) -> None:
        assert part not in seen, f"{part} imports itself over {sorted(seen)}"
        for lower in LAYERS[part]:
            reached(lower, seen | {part})

    for part in LAYERS:
        reached(part, frozenset())


@pytest.mark.parametrize("module", ["autopar.runtime", "autopar"])
def test_a_training_process_loads_only_torch_and_the_runtime(module: str) -> None:
    heavy = "{'solver', 'cost_models', 'msgspec', 'pulp', 'highspy', 'autopar.planner', 'autopar.capture'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    "modules",
    [
        "autopar.cli.main, autopar.cli.opening, autopar.report.text",
        "autopar.planning, autopar.planner.restore, autopar.codegen.program",
        "autopar.planner.pins, autopar.clusters, autopar.plan.files",
    ],
)
def test_reading_pricing_and_emitting_a_plan_needs_neither_torch_nor_solver(modules: str) -> None:
    heavy = "{'torch', 'transformers', 'solver', 'pulp', 'highspy', 'matplotlib'}"
    code = f"import sys, {modules}; print(*sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split() == []


def _torch_names(tree: ast.Module) -> set[str]:
    """Names that stand for torch or for something imported from it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.startswith("torch")}
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "torch":
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _chain(node: ast.expr) -> list[str]:
    """``torch.ops._c10d_functional`` as its names; empty for anything but names and dots."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return [*before, node.attr] if before else []
    return []


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_torch_names(path: Path) -> set[str]:
    """Private names of torch that a file spells out."""
    tree = tree_of(path)
    roots = _torch_names(tree)
    found = {name for name in imports_of(path) if name.startswith("torch") and "._" in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "torch":
            found |= {f"{node.module}.{a.name}" for a in node.names if _is_private(a.name)}
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            chain = _chain(node)
            if chain and chain[0] in roots and chain[:3] != ["torch", "ops", "aten"]:
                found.add(".".join(chain))
    return found


@pytest.mark.parametrize("path", FILES, **ids)
def test_private_torch_names_stand_in_one_file_only(path: Path) -> None:
    if path.name != "torch_private.py":
        assert private_torch_names(path) == set()


def _declared(tree: ast.Module) -> list[str] | None:
    """``__all__`` of a module, if it has one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order of the linter."""
    letters = name.strip("_")
    kind = 0 if letters.isupper() and len(letters) > 1 else 1 if letters[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("path", FILES, **ids)
def test_declared_names_are_sorted_and_defined(path: Path) -> None:
    tree = tree_of(path)
    declared = _declared(tree) or []
    assert declared == sorted(declared, key=_order)
    assert set(declared) <= _defined(tree)


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("path", FILES, **ids)
def test_a_file_takes_from_other_parts_what_they_declare(path: Path) -> None:
    files, mine = {module_of(each): each for each in FILES}, part_of(module_of(path))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module in files and part_of(node.module) != mine:
            declared = _declared(tree_of(files[node.module]))
            for name in (alias.name for alias in node.names):
                is_module = f"{node.module}.{name}" in files
                assert declared is None or is_module or name in declared, f"{node.module} declares no {name}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], **ids)
def test_a_package_declares_what_it_passes_on(path: Path) -> None:
    tree = tree_of(path)
    inside = module_of(path) + "."
    passed_on = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(inside)
        for alias in node.names
    }
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    assert defines or passed_on <= set(_declared(tree) or [])
