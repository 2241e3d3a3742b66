"""Where cascli keeps downloads and converted models."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """The cache folder, not created yet: `CASCLI_HOME`, else the platform's own place for caches."""
    chosen = os.environ.get("CASCLI_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "cascli"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cascli"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path is invalid and to be ignored.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "cascli"


PACKED = {"int8": "", "float32": " float32"}
"""The precisions whose packed layers are kept in `packed`, and what each adds to the name a file is found by."""


def packed_family(folder: Path, dtype: str) -> str:
    """What the names of files with packed layers of this model folder have in common."""
    return hashlib.sha256(f"{folder.resolve()}{PACKED[dtype]}".encode()).hexdigest()[:12]
