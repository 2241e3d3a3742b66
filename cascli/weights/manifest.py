"""`cascli.json` in a converted model folder: written last, so a folder that has a valid one is complete.

Valid means: this schema and converter version, and every listed file present with the listed size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "cascli.json"
SCHEMA = "cascli.weights/1"
# Increase this when folders converted by older versions would be wrong; they are then converted again.
CONVERTER = 1


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a complete and valid converted model."""
    manifest = _read(folder)
    files = manifest.get("files")
    if manifest.get("schema") != SCHEMA or manifest.get("converter") != CONVERTER or not files:
        return False
    return isinstance(files, dict) and all(_size(folder / name) == size for name, size in files.items())


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(folder: Path) -> list[str] | None:
    """The files that have changed since they were written; None if an older version stored no sha256."""
    recorded = _read(folder).get("sha256_of_files")
    if not isinstance(recorded, dict) or not recorded:
        return None
    return [name for name, sha in sorted(recorded.items()) if sha256_of(folder / name) != sha]


@contextmanager
def replacing(folder: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Yield a scratch folder; if the block succeeds, seal it with a manifest and rename it to `folder`.

    Only one process may do this for one `folder` at a time: hold a lock.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        _seal(scratch, about)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _seal(folder: Path, about: dict[str, Any]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    manifest = {"schema": SCHEMA, "converter": CONVERTER, **about, "files": sizes, "sha256_of_files": hashes}
    (folder / NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in (*files, folder / NAME, folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Flush `path` to disk: a name must not survive a power cut without its bytes."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
