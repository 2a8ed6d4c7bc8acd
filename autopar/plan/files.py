"""Plans as files: readable JSON with short arrays on one line, checked when read."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from autopar.errors import PlanError
from autopar.plan.schema import FORMAT, Plan

__all__ = ["format_plan", "parse_plan", "read_plan", "write_plan", "write_program"]

LINE_WIDTH = 120


def format_plan(plan: Plan) -> str:
    """The plan as JSON text, keys in the order of the schema."""
    return _write(msgspec.to_builtins(plan), 0) + "\n"


def _write(data: object, indent: int) -> str:
    """JSON with everything that fits in a line on one line."""
    flat = json.dumps(data, ensure_ascii=False)
    if len(flat) + indent <= LINE_WIDTH or not isinstance(data, (dict, list)) or not data:
        return flat
    inner = " " * (indent + 2)
    if isinstance(data, dict):
        items = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {_write(value, indent + 2)}"
            for key, value in data.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + _write(value, indent + 2) for value in data) + "\n" + " " * indent + "]"


def parse_plan(text: str | bytes, name: str = "plan") -> Plan:
    """A plan from JSON text. Raises ``PlanError`` naming the place that is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{name} is not JSON: {error}. Write it again with `autopar plan … -o`.") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise PlanError(f"{name} has the format {found!r}; this version reads '{FORMAT}'. Plan again.")
    try:
        return msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"{name} is not a plan: {error}. Restore that entry or plan again.") from error


def read_plan(path: str | Path) -> Plan:
    """The plan in a file. Raises ``PlanError`` when it cannot be read or is none."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}.") from error
    return parse_plan(text, str(path))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan whole or not at all. Raises ``PlanError`` when the place cannot be written."""
    _write_whole(Path(path), format_plan(plan), "plan")


def write_program(plan: Plan, source: str, folder: str | Path) -> None:
    """Leave ``plan.json`` and ``program.py`` in a folder, made where it is missing. Raises ``PlanError``."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"the folder {folder} cannot be made: {error.strerror or error}.") from error
    _write_whole(folder / "program.py", source, "program")
    _write_whole(folder / "plan.json", format_plan(plan), "plan")


def _write_whole(path: Path, text: str, what: str) -> None:
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PlanError(f"the {what} cannot be written to {path}: {error.strerror or error}.") from error
