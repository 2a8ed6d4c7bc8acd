"""The notebooks are committed executed, hold little code, and run again."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE_LINES = 30
"""Of one cell: helpers belong in the package."""

nbformat = pytest.importorskip("nbformat")


def notebook_named(path: Path):  # type: ignore[no-untyped-def]
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_executed_without_errors(path: Path) -> None:
    code = [cell for cell in notebook_named(path).cells if cell.cell_type == "code"]
    assert code
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert all(cell.source.count("\n") < CODE_LINES for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_executes(path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = notebook_named(path)
    kinds = [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells]
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    assert [[each.output_type for each in cell.get("outputs", ())] for cell in notebook.cells] == kinds
