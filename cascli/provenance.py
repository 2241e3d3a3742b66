"""Which version of a plug-in of another package is in use: recorded with answers, and compared when a sweep resumes."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cascli.blame import kind_of, with_parts
from cascli.plugins import class_of, is_own, name_of, package_of

PREFIX = "plug-in "
"""How the names of these entries of an environment begin."""
_DIGITS = 12


def of_plugins(*plugins: object) -> dict[str, str]:
    """Entries of an environment, one for each plug-in of another package: its package's version, and a hash.

    Args:
        plugins: those in use, or their classes; a strategy includes the plug-ins it contains.
    """
    classes = dict.fromkeys(class_of(each) for each in with_parts(plugins) if not is_own(each))
    return {f"{PREFIX}{kind_of(each)} {name_of(each)}": _origin(each) for each in classes}


@lru_cache
def _origin(plugin_class: type) -> str:
    """The package and its version, or the module of a class without an entry point, and the source's hash."""
    package, source = package_of(plugin_class) or plugin_class.__module__, _source(plugin_class)
    return f"{package} (source {source})" if source else package


def _source(plugin_class: type) -> str:
    """A short hash of the files that define the class and what it is derived from; empty if there is none.

    An edit seldom comes with another version, and an installation in which files are edited keeps its first one.
    """
    modules = dict.fromkeys(base.__module__ for base in plugin_class.__mro__ if not is_own(base))
    found = []
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.partition(".")[0] not in sys.stdlib_module_names:
            with suppress(OSError):  # inside an archive
                found.append(Path(file).read_bytes())
    return hashlib.sha256(b"\0".join(found)).hexdigest()[:_DIGITS] if found else ""
