"""What a result depends on besides the code: machine, versions, command, date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def facts(packages: tuple[str, ...] = ("torch", "transformers")) -> dict[str, Any]:
    """Return the machine, the versions of cascli and of these packages, the command and the date."""
    from cascli import __version__

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", _module(), *map(_shown, sys.argv[1:])]),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {"python": platform.python_version(), "cascli": __version__} | _versions(packages),
    }


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _shown(argument: str) -> str:
    """Return an argument unchanged, or the last two parts of an absolute path: the rest means nothing elsewhere."""
    path = Path(argument)
    return str(Path(*path.parts[-2:])) if path.is_absolute() else argument


def _module() -> str:
    path = Path(sys.argv[0])
    return f"{path.parent.name}.{path.stem}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
