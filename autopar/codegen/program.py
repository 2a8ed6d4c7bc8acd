"""A whole program: its tables, a class per block type, a root that chains them, and ``build``."""

from __future__ import annotations

from collections.abc import Iterable

from autopar.codegen.build import BUILD_NAMES, build_source
from autopar.codegen.checks import check_sharded
from autopar.codegen.counts import counting_function, counting_source
from autopar.codegen.function import Function, class_source
from autopar.codegen.root import RootWriter, block_function, head_function, is_block
from autopar.codegen.stages import stage_functions, stages_table
from autopar.codegen.tables import program_tables
from autopar.codegen.text import comment
from autopar.shardings.sharded import ShardedGraph

__all__ = ["program_source"]


def program_source(sharded: ShardedGraph, title: str, *, is_compiled: bool = False) -> str:
    """The program of a sharded graph as Python source; ``title`` becomes the first line of its docstring.

    ``is_compiled``: ``build`` compiles blocks and the loss head unless it is told otherwise. Raises ``PlanError``
    for a graph that does not hang together.
    """
    check_sharded(sharded)
    blocks = [
        block_function(sharded, segment) for segment in sharded.graph.types if is_block(sharded, segment)
    ]
    head = head_function(sharded)
    stages = stage_functions(sharded) if sharded.stage_ranks > 1 else []
    roots = [stage.function for stage in stages] or [RootWriter(sharded).function()]
    functions = [*blocks, *([head] if head else []), *roots]
    counting = counting_function(sharded)
    parts = [
        _header(title, sharded),
        _imports([*functions, *counting], ("Pipeline", "Stage", "Wire") if stages else ()),
        program_tables(sharded),
        *(class_source(function) for function in functions),
        *(counting_source(function) for function in counting),
        *([stages_table(sharded, stages)] if stages else []),
        build_source(sharded, head.name if head else "", is_compiled=is_compiled),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _header(title: str, sharded: ShardedGraph) -> str:
    stages = [f"pp {sharded.stage_ranks}"] if sharded.stage_ranks > 1 else []
    axes = ", ".join([*stages, *(f"{axis.name} {axis.size}" for axis in sharded.axes)]) or "one device"
    safe = comment(title).replace("\\", "/").replace('"""', "'''")
    return _HEADER.format(title=safe, axes=axes)


_HEADER = '''"""{title}

Mesh: {axes}. Shapes in comments are local: what one rank holds. Collectives are explicit and
carry their gradient's collective with them. Made by autopar; change the plan rather than this file.
"""
'''

_IMPORTS = """from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from autopar.runtime import (
{names})
"""


def _imports(functions: Iterable[Function], more: Iterable[str]) -> str:
    used = set(more).union(*(function.scope.runtime for function in functions))
    names = sorted({*used, *BUILD_NAMES}, key=lambda name: (not name[0].isupper(), name))
    return _IMPORTS.format(names="".join(f"    {name},\n" for name in names))
