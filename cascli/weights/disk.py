"""Disk space: checked before writing, and reported in the same words when it runs out half-way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascli.errors import RunError

GB = 1e9
HOME = "CASCLI_HOME"
FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def full_message(folder: Path, needed: int, variable: str = HOME) -> str:
    """State how much `folder` needs (bytes, 0 if not known) and has free, and what to do; `variable` moves it."""
    need = f"about {needed / GB:.1f} GB are needed and " if needed else ""
    return (
        f"{folder}: not enough disk space: {need}{_free(folder) / GB:.1f} GB are free.\n"
        f"Free some space, or set {variable} to a folder on a larger disk."
    )


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has `needed` bytes free.

    Raises:
        RunError: there is less.

    """
    if _free(folder) < needed:
        raise RunError(full_message(folder, needed))


@contextmanager
def writing(folder: Path, needed: int = 0, variable: str = HOME) -> Iterator[None]:
    """Turn a failed write in `folder` into an error that a user can act on.

    Args:
        folder: where files are written.
        needed: bytes, 0 if not known.
        variable: the environment variable that sets this folder's location.

    Raises:
        RunError: the disk is full, or the folder cannot be written.

    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RunError(full_message(folder, needed, variable)) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
            raise RunError(
                f"{error.filename or folder}: cannot be written: {error.strerror}.\n"
                f"Set {variable} to a folder that you can write to."
            ) from error
        raise


def tree_bytes(folder: Path) -> int:
    """Bytes of the regular files under `folder` (links followed), 0 if it is absent."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            # A download in progress renames and removes files between the listing and this call.
            try:
                total += Path(here, name).stat().st_size
            except OSError:
                continue
    return total


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
