"""Reports missing dependencies of the GPU benchmark before importing any. Uses only the standard library."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from benchmarks.subprocess_runner import ROOT

_NOT_NEEDED = {"gguf", "pip"}
"""Dependencies for weights on disk, which random pairs do not have."""
_ALSO = {"triton": "cuda", "pytest": "tests"}
"""Packages that are not dependencies of cascli (extra `dev`), and the purpose that needs each."""
_WITH = {"pydantic": ("annotated-types", "pydantic-core", "typing-extensions", "typing-inspection")}
"""Dependencies that are missing when only a package's own wheel is copied."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+?)(?:>=([\d.]+))?\s*(?:;.*)?$")


def check(purposes: Sequence[str]) -> None:
    """Exit with the names of all missing packages, if there are any.

    Args:
        purposes: what is planned besides measuring on a CPU: `cuda`, `tests`.

    Raises:
        SystemExit: something is missing.
    """
    lacking = [each for each in _needed(purposes) if not _is_there(each)]
    if not lacking:
        return
    more = [
        f"{name} comes with {', '.join(with_it)}."
        for name, with_it in _WITH.items()
        if any(name in each for each in lacking)
    ]
    command = f"{sys.executable} -m pip install {' '.join(repr(each) for each in lacking)}"
    carried = "Where no index can be reached, carry the wheels and put the folder they are unpacked to on PYTHONPATH."
    sys.exit("\n".join([f"This Python lacks {', '.join(lacking)}.", f"Install: {command}", carried, *more]))


def _needed(purposes: Sequence[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    also = [each for each in project["optional-dependencies"]["dev"] if _ALSO.get(_parts(each)[0]) in purposes]
    own = [each for each in project["dependencies"] if _parts(each)[0] not in _NOT_NEEDED]
    return ["".join(each.partition(";")[0].split()) for each in (*own, *also)]


def _parts(requirement: str) -> tuple[str, str | None]:
    found = _REQUIREMENT.match(requirement)
    return (found[1], found[2]) if found else (requirement, None)


def _is_there(requirement: str) -> bool:
    name, least = _parts(requirement)
    try:
        found = version(name)
    except PackageNotFoundError:
        return False
    return least is None or _numbers(found) >= _numbers(least)


def _numbers(text: str) -> list[int]:
    """Return the numbers of a version's release part, which is all that is compared."""
    return [int(each) for each in re.match(r"[\d.]*\d", text)[0].split(".")]  # type: ignore[index]
