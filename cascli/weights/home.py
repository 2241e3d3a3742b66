"""Where cascli keeps downloads and converted models."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """The cache folder (not created here): `CASCLI_HOME`, else the platform's standard location for caches."""
    chosen = os.environ.get("CASCLI_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "cascli"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cascli"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the XDG specification, a relative path is invalid and must be ignored.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "cascli"


PACKED = {"int8": "", "float32": " float32"}
"""The precisions whose packed layers are kept in `packed`, and what each adds to the key hashed for its file names."""


def packed_family(folder: Path, dtype: str) -> str:
    """The common part of the names of files with packed layers of this model folder."""
    return hashlib.sha256(f"{folder.resolve()}{PACKED[dtype]}".encode()).hexdigest()[:12]
