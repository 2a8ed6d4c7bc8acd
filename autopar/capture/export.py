"""Runs ``torch.export`` on a module as it is, and says what went wrong in terms of the user's code."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import nn

from autopar.capture.inputs import Example, module_device
from autopar.capture.sources import error_line
from autopar.capture.stand_ins import stand_ins
from autopar.errors import CaptureError
from autopar.torch_private import write_structure

__all__ = ["export", "output_tree", "ready"]


def export(module: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """Returns the module's forward as torch.export sees it: non-strict, training mode, not decomposed.

    Raises CaptureError with the user's line when the forward cannot be exported.
    """
    with ready(module, example) as fit:
        try:
            return torch.export.export(module, fit.args, fit.kwargs, strict=False)
        except Exception as error:
            raise CaptureError(_explain(module, error)) from error


@contextmanager
def ready(module: nn.Module, example: Example) -> Iterator[Example]:
    """Puts a module into the state in which it is exported, and back; yields fitting inputs."""
    device = module_device(module)
    with ExitStack() as stack:
        stack.enter_context(_training(module))
        if device is not None and device.type == "meta":
            example = stack.enter_context(stand_ins(module, example))
        stack.enter_context(_quiet())
        yield example


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch prints and logs about a failing export: the error says it."""

    def keep_back(_record: logging.LogRecord) -> bool:
        return False

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(keep_back)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep_back)


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """Puts a module that is in eval mode into training mode; in one that trains, parts may stay in eval.

    Afterwards the modules have the attributes that they had: a forward that keeps something on its module
    would keep a tensor without values.
    """
    held = [(each, dict(vars(each))) for each in module.modules()]
    if not module.training:
        module.train()
    try:
        yield
    finally:
        for each, attributes in held:
            vars(each).clear()
            vars(each).update(attributes)


def _explain(module: nn.Module, error: Exception) -> str:
    line = error_line(error)
    where = f"{type(module).__name__} cannot be captured" + (f": {line}" if line else "")
    kind = type(error).__name__
    if kind == "GuardOnDataDependentSymNode" or "data-dependent" in str(error):
        return (
            f"{where}\nWhat runs here depends on the values of a tensor; a plan must hold for all values. "
            "Compute both sides and choose with torch.where, or move this decision out of the forward."
        )
    message = (str(error).strip() or "no message").splitlines()[0]
    if "devices" in message and "meta" in message:
        message += (
            "\nA tensor that is neither a parameter nor a buffer of the module has no values on the meta "
            "device: register it with register_buffer, or build the module on the cpu."
        )
    return f"{where}\n{kind}: {message}"


def output_tree(program: torch.export.ExportedProgram) -> str:
    """Returns how the module packs its outputs: ``tensor`` for a single one, else torch's own text."""
    structure: Any = program.call_spec.out_spec
    for output in program.graph_signature.output_specs:
        if type(output.arg).__name__ != "TensorArgument":
            value = getattr(output.arg, "value", None)
            raise CaptureError(f"the forward returns {value!r} beside tensors: return tensors only")
    if structure.is_leaf():
        return "tensor"
    try:
        return write_structure(structure)
    except NotImplementedError as error:
        raise CaptureError(f"the forward returns a class that torch cannot write down: {error}") from error
