"""Find rules, drafters, stops and strategies: those of this package by file names, those of others by entry points.

A package `cascli.rules` finds the entry points of the group `cascli.rules`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from pydantic import TypeAdapter

from cascli.errors import UsageError, first_line, unknown

GROUPS = ("cascli.rules", "cascli.drafters", "cascli.stops", "cascli.strategies")
"""The packages that hold plug-ins, and the entry points of those of others."""


def names(package: ModuleType) -> list[str]:
    """All plug-ins: the package's public modules except `base`, with dashes for underscores, and entry points."""
    return sorted({*_own(package), *_foreign(package.__name__)})


def _own(package: ModuleType) -> frozenset[str]:
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return frozenset(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


@lru_cache
def _foreign(group: str) -> dict[str, EntryPoint]:
    """Entry points by name; a package's own plug-ins cannot be replaced."""
    return {point.name: point for point in entry_points(group=group)}


def name_of(kind: type) -> str:
    """The name of a plug-in's class: its file's, its entry point's, or its own (`MinP` of a notebook is `min-p`)."""
    home, _, file = kind.__module__.rpartition(".")
    if home in GROUPS:
        return file.replace("_", "-")
    for group in GROUPS:
        for name, point in _foreign(group).items():
            if point.value == f"{kind.__module__}:{kind.__qualname__}":
                return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", kind.__name__).lower()


def usable(package: ModuleType, kind: str, parent: type) -> list[str]:
    """The plug-ins that can be used as they are: those of other packages are tried, and left out if they are broken."""
    found = [*_own(package)]
    for name in _foreign(package.__name__).keys() - _own(package):
        with suppress(Exception):  # whatever another package's class does; asked for by its name it says why
            made = load(package, kind, name, parent)
            # By types and ranges, which the defaults of a dataclass are not held against when it is made.
            TypeAdapter(made).validate_python({each.name: getattr(made(), each.name) for each in fields(made)})
            found.append(name)
    return sorted(found)


def load(package: ModuleType, kind: str, name: str, parent: type) -> type:
    """The class of a plug-in: the one subclass of `parent` that its file defines, or what its entry point names.

    Raises:
        UsageError: there is no such plug-in, or another package's cannot be imported or is something else.
    """
    known = names(package)
    if name not in known:
        raise UsageError(unknown(kind, name, known))
    if name not in _own(package):
        return _imported(_foreign(package.__name__)[name], kind, parent)
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, parent) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {parent.__name__}, found {len(own)}")
    return _checked(own[0])


def _checked(kind: type) -> type:
    """The class, if it is a dataclass of its own: a forgotten decorator would have the fields of its parent."""
    if "__dataclass_params__" not in vars(kind):
        raise UsageError(f"{kind.__module__}: {kind.__qualname__} must be decorated with @dataclass(frozen=True)")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise UsageError(f"{kind.__module__}: {kind.__qualname__} lacks {', '.join(missing)}")
    return kind


def _imported(point: EntryPoint, kind: str, parent: type) -> type:
    try:
        value = point.load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise UsageError(
            f"{kind} '{point.name}' of {point.value}: {type(error).__name__}: {first_line(error)}"
        ) from None
    if not (isinstance(value, type) and issubclass(value, parent)):
        raise UsageError(f"{kind} '{point.name}': {point.value} is no {parent.__name__}")
    return _checked(value)
