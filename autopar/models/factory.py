"""Models from a user's file: ``path/file.py:factory``, where ``factory()`` returns ``(module, inputs)``."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from autopar.errors import ModelError
from autopar.models.source import BuiltModel, ModelSource, closest, seeded

__all__ = ["FactorySource"]


@dataclass(frozen=True)
class FactorySource(ModelSource):
    """A function in a Python file."""

    text: str
    path: Path
    function: str

    def build(
        self,
        *,
        global_batch: int | None = None,
        seq_len: int | None = None,
        device: str = "meta",
        seed: int = 0,
    ) -> BuiltModel:
        """Calls the factory, which makes the global batch: ``global_batch`` and ``seq_len`` may only repeat its sizes.

        On ``meta`` a factory that needs values (``item()``, numpy, plain tensor attributes) runs on the cpu.
        """
        built = self._build_without_memory(seed) if device == "meta" else None
        if built is None:
            with seeded(seed, "cpu" if device == "meta" else device):
                built = self._call(self._load())
        if global_batch is not None and global_batch != built.global_batch:
            raise ModelError(
                f"{self.text} makes a global batch of {built.global_batch}, not {global_batch}: "
                "change the factory, or leave the batch out"
            )
        if seq_len is not None and seq_len not in built.lengths:
            raise ModelError(
                f"{self.text} makes no sequences of {seq_len}: change the factory, or leave the sequence length out"
            )
        return built

    def _build_without_memory(self, seed: int) -> BuiltModel | None:
        function = self._load()
        try:
            with seeded(seed, "meta"):
                built = self._call(function)
        except ModelError:
            return None
        return None if _has_loose_tensors(built.module) else built

    def _load(self) -> Callable[[], Any]:
        if not self.path.is_file():
            raise ModelError(f"{self.text}: there is no file {self.path}")
        module = self._import()
        function = getattr(module, self.function, None)
        if not callable(function):
            known = [name for name, held in vars(module).items() if callable(held)]
            raise ModelError(f"{self.path} has no function {self.function!r}{closest(self.function, known)}")
        return function

    def _import(self) -> ModuleType:
        name = f"autopar_model_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None or spec.loader is None:
            raise ModelError(f"{self.path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with self._blamed_on_file("cannot be imported"), _importable(self.path.parent):
            spec.loader.exec_module(module)
        return module

    def _call(self, function: Callable[[], Any]) -> BuiltModel:
        with self._blamed_on_file("failed"), _importable(self.path.parent):
            made = function()
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
            raise ModelError(
                f"{self.text} must return (module, inputs), not {_kind(made)}: "
                "a module that returns its scalar loss, and a tuple or a dict of tensors"
            )
        module, inputs = made
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        if not isinstance(inputs, tuple | dict) or not _has_tensor(inputs):
            raise ModelError(
                f"{self.text} returns {_kind(inputs)} as inputs: "
                "make it a tuple of tensors, or a dict of keyword tensors, of the whole global batch"
            )
        return BuiltModel(module, inputs)

    @contextmanager
    def _blamed_on_file(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{self.text} {what}: {self._line(error)}\n{type(error).__name__}: {error}"
            ) from error

    def _line(self, error: BaseException) -> str:
        """``file.py:12   code`` for the innermost line of the user's file that the error passed."""
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == self.path.name:
            return f"{self.path.name}:{error.lineno}   {(error.text or '').strip()}"
        lines = [
            number
            for frame, number in walk_tb(error.__traceback__)
            if Path(frame.f_code.co_filename).resolve() == self.path.resolve()
        ]
        if not lines:
            return self.path.name
        return f"{self.path.name}:{lines[-1]}   {linecache.getline(str(self.path), lines[-1]).strip()}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the file import its neighbours, as ``python file.py`` does."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _has_tensor(inputs: tuple[Any, ...] | dict[str, Any]) -> bool:
    held = inputs.values() if isinstance(inputs, dict) else inputs
    return any(isinstance(each, Tensor) for each in held)


def _has_loose_tensors(module: nn.Module) -> bool:
    """Whether tensors that are neither parameters nor buffers lost their values on meta."""
    held = (value for each in module.modules() for value in vars(each).values())
    return any(isinstance(value, Tensor) and value.is_meta for value in held)


def _kind(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(each).__name__ for each in made)})"
    return f"a {type(made).__name__}"
