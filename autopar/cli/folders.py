"""Writing several files into a folder so that all of them appear, or none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from autopar.errors import PlanError

__all__ = ["write_folder"]


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files into ``folder``, which is made if need be.

    The files are written beside it first and then renamed into place. Raises ``PlanError`` when the place
    cannot be written; nothing has changed then.
    """
    try:
        _check(folder, files)
        is_new = not folder.exists()
        draft = Path(tempfile.mkdtemp(prefix=".autopar-", dir=folder.parent if is_new else folder))
        try:
            for name, text in files.items():
                (draft / name).write_text(text, encoding="utf-8")
            _publish(draft, folder, files, is_new=is_new)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise PlanError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _check(folder: Path, files: Mapping[str, str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"{folder} is a file: name a folder for {' and '.join(files)}.")
    for name in files:
        if (folder / name).is_dir():
            raise PlanError(f"{folder / name} is a folder: remove it, or name another place.")
    folder.parent.mkdir(parents=True, exist_ok=True)


def _publish(draft: Path, folder: Path, files: Mapping[str, str], *, is_new: bool) -> None:
    if is_new:
        draft.chmod(0o755)
        draft.rename(folder)
        return
    for name in files:
        (draft / name).replace(folder / name)
