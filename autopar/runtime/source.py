"""Generated source as a module of its own, with its lines where tracebacks and ``torch.compile`` look for them."""

from __future__ import annotations

import linecache
import sys
import types
from hashlib import sha256

__all__ = ["load_source"]


def load_source(source: str) -> types.ModuleType:
    """The module that ``source`` defines; the same one for the same text."""
    name = f"autopar_program_{sha256(source.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    filename = f"<{name}.py>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(name)
    module.__file__ = filename
    sys.modules[name] = module
    try:
        exec(compile(source, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
