"""Deferral rules, one file each, found by file name: `token_v3.py` holds the rule `token-v3`."""

from __future__ import annotations

import sys

from cascli import plugins
from cascli.rules.base import Rule

__all__ = ["Rule", "load", "names"]


def names() -> list[str]:
    """The names of all rules."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> type[Rule]:
    """The class of the rule `name`.

    Raises:
        UsageError: there is no such rule.
    """
    return plugins.load(sys.modules[__name__], "rule", name, Rule)
