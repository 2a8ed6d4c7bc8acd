"""Reads the MODEL that a user names on the command line."""

from __future__ import annotations

from pathlib import Path

from autopar.errors import ModelError
from autopar.models.factory import FactorySource
from autopar.models.families import parse_family
from autopar.models.huggingface import HuggingFaceSource
from autopar.models.source import ModelSource

__all__ = ["parse_model"]


def parse_model(text: str) -> ModelSource:
    """Returns the source of a model.

    ``gpt:layers=4,hidden=256`` (also ``llama:``, ``mlp:``), ``gpt2`` and other names, sizes overridden as in
    ``llama3-8b:layers=4``, ``hf:ClassName[:config.json]``, or ``path/file.py:factory``.
    Raises ModelError for anything else; files are opened only when the model is built.
    """
    if text.startswith("hf:"):
        class_name, _, config = text.removeprefix("hf:").partition(":")
        return HuggingFaceSource(text, class_name, Path(config) if config else None)
    path, separator, function = text.rpartition(":")
    if separator and path.endswith(".py"):
        return FactorySource(text, Path(path), function)
    if text.endswith(".py"):
        raise ModelError(f"{text}: name the function that returns (module, inputs), as in {text}:factory")
    return parse_family(text)
