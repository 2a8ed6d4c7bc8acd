"""Models by name: built-in families, transformers, and users' files."""

from autopar.models.source import BuiltModel, ModelSource
from autopar.models.spec import parse_model

__all__ = ["BuiltModel", "ModelSource", "parse_model"]
