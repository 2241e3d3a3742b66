"""Find rules and strategies by their file names, without importing the others."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from cascli.errors import UsageError, unknown


def names(package: ModuleType) -> list[str]:
    """The plug-ins of a package: its public modules except `base`, with dashes for underscores."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in found if name != "base" and not name.startswith("_"))


def name_of(kind: type) -> str:
    """The name that a plug-in's class has by its file."""
    return kind.__module__.rpartition(".")[2].replace("_", "-")


def load(package: ModuleType, kind: str, name: str, parent: type) -> type:
    """The one subclass of `parent` that the plug-in's file defines.

    Raises:
        UsageError: there is no such plug-in.
    """
    known = names(package)
    if name not in known:
        raise UsageError(unknown(kind, name, known))
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, parent) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {parent.__name__}, found {len(own)}")
    return own[0]
