"""A plan is data: whatever its strings say, none becomes code in the emitted program."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from autopar.errors import AutoparError
from autopar.plan.files import format_plan, parse_plan
from autopar.planning import generate_program
from tests.autopar.cli.command import small_plan

ATTACKS = (
    'x"""\n__import__("os").system("echo hostile")\n"""',
    "x'\nimport hostile\n#",
    'x\\"); hostile()\r\nhostile()\x0chostile()\u2028hostile() #{hostile()}',
    "hostile()",
    "%hostile()",
    "'hostile()'",
    "float32[8, 64] grad\nhostile()",
)
CODE = re.compile(r"hostile|__import__|\bos\b")

Place = tuple[str | int, ...]


def strings(data: Any, place: Place = ()) -> Iterator[Place]:
    """Places of all strings in JSON data; keys of objects end in a negative number."""
    if isinstance(data, dict):
        for position, (key, value) in enumerate(data.items()):
            yield from strings(value, (*place, key))
            if place and place[-1] in ("values", "parameters", "boundaries", "outer_values", "keywords"):
                yield (*place, -1 - position)
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield from strings(item, (*place, index))
    elif isinstance(data, str):
        yield place


def distinct(places: Iterator[Place]) -> list[Place]:
    """One place of each kind: positions in lists do not matter."""
    kinds = {re.sub(r"\b\d+\b", "*", "/".join(map(str, place))): place for place in places}
    return list(kinds.values())


def replaced(data: Any, place: Place, text: str) -> Any:
    changed = copy.deepcopy(data)
    *way, last = place
    holder = changed
    for part in way:
        holder = holder[part]
    if isinstance(last, int) and last < 0:
        items = list(holder.items())
        items[-1 - last] = (text, items[-1 - last][1])
        holder.clear()
        holder.update(items)
    else:
        holder[last] = text
    return changed


def renamed(data: Any, old: str, new: str) -> Any:
    """Every mention of one name replaced, so that the plan still hangs together."""
    if isinstance(data, dict):
        return {new if key == old else key: renamed(value, old, new) for key, value in data.items()}
    if isinstance(data, list):
        return [renamed(item, old, new) for item in data]
    if isinstance(data, str):
        return new if data == old else f"%{new}" if data == f"%{old}" else data
    return data


def code_of(source: str) -> str:
    """What a program does: its syntax tree without strings (comments are not in it)."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant(value="") if isinstance(node.value, str) else node

    return ast.dump(Blank().visit(ast.parse(source)))


@pytest.fixture(scope="module")
def data() -> Any:
    return msgspec.json.decode(format_plan(small_plan()))


def assert_harmless(data: Any) -> None:
    """The plan is refused, or its program holds the attack in strings and comments at most."""
    try:
        source = generate_program(parse_plan(msgspec.json.encode(data)))
    except AutoparError:
        return
    assert not CODE.search(code_of(source)), source


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_single_string_becomes_code(data: Any, attack: str) -> None:
    for place in distinct(strings(data)):
        assert_harmless(replaced(data, place, attack))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "name", ["GPTBlock", "Root0", "tokens", "x", "q", "gelu_1", "layers.0", "tokens.weight"]
)
def test_no_consistently_renamed_thing_becomes_code(data: Any, attack: str, name: str) -> None:
    assert_harmless(renamed(data, name, attack))


def test_names_of_the_language_and_the_runtime_are_no_trap(data: Any) -> None:
    for name in ("self", "torch", "F", "local", "all_reduce", "class", "None"):
        for old in ("x", "q", "GPTBlock"):
            try:
                source = generate_program(parse_plan(msgspec.json.encode(renamed(data, old, name))))
            except AutoparError:
                continue
            compile(source, "program.py", "exec")
