"""Plans made before: the same question about the same model has the same answer.

A question is the model as written (and its configuration file), batch and sequence, the whole description of the
cluster, every option, and the versions of torch, transformers and autopar's own source. A model from a Python
file is planned anew each time: the file may import anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = ["cached_plan", "keep_plan", "question_key"]

PACKAGES = ("autopar", "solver", "cost_models")
DEPENDENCIES = ("torch", "transformers")


def question_key(model: str, question: Mapping[str, object]) -> str | None:
    """A name for the question; None where the model's text does not say what it is."""
    _, _, rest = model.partition(":")
    if ".py" in model:
        return None
    config = Path(rest.partition(":")[2]) if model.startswith("hf:") else None
    parts = [model, *(f"{name}={value!r}" for name, value in sorted(question.items()))]
    if config is not None and config.name:
        try:
            parts.append(config.read_text(encoding="utf-8"))
        except OSError:
            return None
    parts += [*_versions(), *_sources()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _versions() -> Iterator[str]:
    for name in DEPENDENCIES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name} absent"


def _sources() -> Iterator[str]:
    """Every file of ours by path, size and time: a changed planner may answer otherwise."""
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".toml"):
                facts = path.stat()
                yield f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}"


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "autopar" / "plans"


def cached_plan(key: str) -> str | None:
    """The text of the plan that was kept for a question; None without one."""
    try:
        return (_folder() / f"{key}.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def keep_plan(key: str, text: str) -> None:
    """Keep a plan's text; where that cannot be done it is planned again next time."""
    path = _folder() / f"{key}.json"
    whole = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)
    except OSError:
        with suppress(OSError):
            whole.unlink(missing_ok=True)
