"""Deferral rules, one file each, found by file name: `token_v3.py` holds the rule `token-v3`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cascli import plugins
from cascli.rules.base import Rule

__all__ = ["Rule", "broken", "load", "names", "usable"]


def names() -> list[str]:
    """The names of all rules."""
    return plugins.names(sys.modules[__name__])


def usable(works: Callable[[Rule], object]) -> list[str]:
    """The names of all rules, without those of other packages that cannot be created or for which `works` raises."""
    return plugins.usable(sys.modules[__name__], "rule", Rule, works)


def broken(works: Callable[[Rule], object]) -> dict[str, str]:
    """The names that `usable` leaves out, with the reasons."""
    return plugins.broken(sys.modules[__name__], "rule", Rule, works)


def load(name: str) -> type[Rule]:
    """The class of the rule `name`.

    Raises:
        UsageError: there is no such rule.
    """
    return plugins.load(sys.modules[__name__], "rule", name, Rule)
