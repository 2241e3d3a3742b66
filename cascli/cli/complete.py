"""Shell completion: pair, strategy and rule names, without loading anything heavy."""

from __future__ import annotations

from typing import get_args

from cascli.config import pair_files
from cascli.settings import Dtype


def pairs(incomplete: str) -> list[str]:
    """Ready pairs."""
    return [name for name in pair_files() if name.startswith(incomplete)]


def strategies(incomplete: str) -> list[str]:
    """Strategy names, and after `rule=` the rules, after `draft=` the drafters."""
    from cascli import drafters, rules
    from cascli import strategies as all_strategies

    for key, package in (("rule=", rules), ("draft=", drafters)):
        head, separator, tail = incomplete.rpartition(key)
        if separator and "," not in tail:
            return [f"{head}{key}{name}" for name in package.names() if name.startswith(tail)]
    return [name for name in all_strategies.names() if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """What a result can be written as."""
    from cascli.settings import Format

    return [name for name in get_args(Format) if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Device names."""
    return [name for name in ("auto", "cpu", "cuda") if name.startswith(incomplete)]


def dtypes(incomplete: str) -> list[str]:
    """Precisions."""
    return [name for name in get_args(Dtype) if name.startswith(incomplete)]


def colors(incomplete: str) -> list[str]:
    """When to colour."""
    return [name for name in ("auto", "always", "never") if name.startswith(incomplete)]
