"""Find rules, drafters, stops and strategies: those of this package by file name, those of others by entry point.

The package `cascli.rules` uses the entry-point group `cascli.rules`. Nothing is imported before it is needed.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, reduce
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from cascli.errors import CascliError, UsageError, raised, unknown

GROUPS = ("cascli.rules", "cascli.drafters", "cascli.stops", "cascli.strategies")
"""The packages that contain plug-ins, and the entry-point groups for those of other packages."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that can be written as a strategy's parameter."""
_RESERVED = {"rule", "draft", "stop", "verify", "temperatures"}
"""Parameters of strategies that tables, labels and audits interpret, and the key of a sweep's entries."""


def names(package: ModuleType) -> list[str]:
    """Names of all plug-ins: the package's public modules except `base`, dashes for underscores, and entry points."""
    return sorted({*_own(package), *_foreign(package.__name__)})


def _own(package: ModuleType) -> frozenset[str]:
    return _modules_in(tuple(package.__path__))


@lru_cache
def _modules_in(folders: tuple[str, ...]) -> frozenset[str]:
    modules = (module.name for module in pkgutil.iter_modules(folders))
    return frozenset(name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_"))


@lru_cache
def _offered(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name, without duplicates."""
    by_name: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=group):
        by_name.setdefault(point.name, {})[point.value] = point
    return {name: list(points.values()) for name, points in by_name.items()}


def _foreign(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name, without those whose names cannot be written as a parameter."""
    return {name: points for name, points in _offered(group).items() if _NAME.fullmatch(name)}


def unreachable(package: ModuleType) -> list[str]:
    """One sentence per entry point that cannot be used: its name is invalid or belongs to one of cascli's plug-ins."""
    own, messages = _own(package), []
    for name, points in _offered(package.__name__).items():
        for point in points:
            if not _NAME.fullmatch(name):
                messages.append(
                    f"'{name}' of {point.value} is ignored: a name may contain only letters, digits, '-', '_' and '.'"
                )
            elif name in own:
                messages.append(f"'{name}' of {point.value} is ignored: cascli has its own of that name.")
    return messages


def name_of(plugin_class: type) -> str:
    """Name of a plug-in class: from its file, its entry point, or itself (`MinP` in a notebook is `min-p`).

    If its own name would load another class (`Chow` in a notebook), the module stands before it: `__main__.chow`.
    """
    home, _, file = plugin_class.__module__.rpartition(".")
    if home in GROUPS:
        return file.replace("_", "-")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", plugin_class.__name__).lower()
    group = group_of(plugin_class)
    if group is None:
        return name
    package = importlib.import_module(group)
    for offered, points in _foreign(group).items():
        if len(points) == 1 and offered not in _own(package) and _names(points[0], plugin_class):
            return offered
    return f"{plugin_class.__module__}.{name}" if name in names(package) else name


def group_of(plugin_class: type) -> str | None:
    """The group of a plug-in class, by the package of its base class; None if it is no plug-in."""
    homes = (base.__module__.removesuffix(".base") for base in plugin_class.__mro__)
    return next((home for home in homes if home in GROUPS), None)


def _names(point: EntryPoint, plugin_class: type) -> bool:
    """Whether an entry point names this class, perhaps where it is imported and not where it is defined."""
    with suppress(Exception):  # an invalid entry point, or whatever another package's module does
        return reduce(getattr, point.attr.split("."), sys.modules[point.module]) is plugin_class
    return False


def is_own(plugin: object) -> bool:
    """Whether a plug-in, or its class, belongs to this package."""
    return class_of(plugin).__module__.partition(".")[0] == "cascli"


def class_of(plugin: object) -> type:
    """The class of a plug-in; a class is returned as it is."""
    return plugin if isinstance(plugin, type) else type(plugin)


def broken(package: ModuleType, kind: str, parent: type, works: Callable[[str, type[Any]], object]) -> dict[str, str]:
    """The plug-ins of other packages that do not work, each with a sentence giving the reason.

    `works` raises an error if the plug-in of this name and class does not work.
    """
    reasons = {}
    own = _own(package)
    for name, points in sorted(_foreign(package.__name__).items()):
        if name in own:
            continue
        try:
            works(name, load(package, kind, name, parent))
        except (Exception, SystemExit) as error:  # another package's class may raise anything
            said = str(error) if isinstance(error, CascliError) else raised(error)
            reasons[name] = said if f"'{name}'" in said else f"{kind} '{name}' of {points[0].value}: {said}"
    return reasons


def load(package: ModuleType, kind: str, name: str, parent: type) -> type:
    """The class of a plug-in: the one subclass of `parent` that its file defines, or what its entry point names.

    Raises:
        UsageError: there is no such plug-in, it is not a valid one, or another package's cannot be imported.
    """
    known = names(package)
    if name not in known:
        raise UsageError(unknown(kind, name, known))
    if name not in _own(package):
        points = _foreign(package.__name__)[name]
        if len(points) > 1:
            values = " and ".join(point.value for point in points)
            raise UsageError(f"{kind} '{name}': {values} both have this name; uninstall one of their packages")
        return _imported(points[0], kind, parent)
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, parent) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise UsageError(f"{module.__name__} must define exactly one {parent.__name__} (found {len(own)})")
    return _checked(own[0])


def _checked(plugin_class: type) -> type:
    """Return the class if it is itself a dataclass: without the decorator it would have its parent's fields."""
    where = f"{plugin_class.__module__}: {plugin_class.__qualname__}"
    if "__dataclass_params__" not in vars(plugin_class):
        raise UsageError(f"{where} must be decorated with @dataclass(frozen=True)")
    missing = sorted(getattr(plugin_class, "__abstractmethods__", ()))
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    _check_parameters(plugin_class, where)
    return plugin_class


def _check_parameters(plugin_class: type, where: str) -> None:
    """Check that a class's own parameters hide no inherited attribute and can be written in a strategy string.

    Raises:
        UsageError: a parameter hides an attribute, such as `name`, has the name of one that cascli interprets, or its
            default cannot be written.
    """
    bases = [base for base in plugin_class.__mro__[1:] if base.__module__.partition(".")[0] == "cascli"]
    inherited = {each.name for base in bases if is_dataclass(base) for each in fields(base)}
    inherited |= set(plugin_class.parts() if hasattr(plugin_class, "parts") else ())  # plug-ins, written by name
    for each in fields(plugin_class):
        if each.name in inherited:
            continue
        if any(hasattr(base, each.name) for base in bases):
            text = f"'{each.name}' is an attribute that cascli reads: declare it as a ClassVar, or rename the parameter"
            raise UsageError(f"{where}: {text}")
        if each.name in _RESERVED:
            raise UsageError(f"{where}: '{each.name}' is a name that cascli itself uses: rename the parameter")
        value = None if each.default is MISSING else each.default
        if not isinstance(value, str | int | float | tuple | list | None) or {*str(value)} & {*",="}:
            raise UsageError(
                f"{where}: {each.name}: a parameter's default must be a number, a bool, or a string without ',' and '='"
            )


def _imported(point: EntryPoint, kind: str, parent: type) -> type:
    try:
        with redirect_stdout(sys.stderr):  # a module may print, and stdout is for results
            value = point.load()
    except (Exception, SystemExit) as error:  # another package's module may raise anything
        raise UsageError(f"{kind} '{point.name}' of {point.value}: {raised(error)}") from None
    if not (isinstance(value, type) and issubclass(value, parent)):
        raise UsageError(f"{kind} '{point.name}': {point.value} is not a subclass of {parent.__name__}")
    return _checked(value)


def package_of(plugin_class: type) -> str | None:
    """Name and version of the package whose entry point names a class; None if none does, as for a notebook's class."""
    for group in GROUPS:
        for point in (each for points in _foreign(group).values() for each in points):
            if point.dist and _names(point, plugin_class):
                return f"{point.dist.name} {point.dist.version}"
    return None
