"""One generated forward, and how it is written as a class."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.codegen.lines import layout_lines
from autopar.codegen.segment import Scope
from autopar.codegen.text import comment, identifier

__all__ = ["Function", "class_source"]


@dataclass(frozen=True, slots=True)
class Function:
    """One generated forward."""

    name: str
    note: str
    arguments: tuple[str, ...]
    scope: Scope
    results: tuple[str, ...]


def class_source(function: Function) -> str:
    """A module class whose forward is the function."""
    arguments = "".join(f", {name}" for name in function.arguments)
    axes = [name for name in function.scope.sharded.axis_names if name in function.scope.axes]
    body = [f'        {name} = self.axes["{name}"]' for name in axes]
    body += layout_lines(function.scope.lines, "        ")
    result = ", ".join(function.results)
    return (
        f"\nclass {identifier(function.name)}(nn.Module):\n"
        f'    """{comment(function.note)}"""\n\n'
        f"    def forward(self{arguments}):\n" + "\n".join([*body, f"        return {result}"]) + "\n"
    )
