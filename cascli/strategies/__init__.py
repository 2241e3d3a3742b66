"""Decoding strategies, one file each, found by file name: `token_cascade.py` holds `token-cascade`.

Strategies import torch only while they decode, so that the command line can list and check them quickly.
"""

from __future__ import annotations

import sys

from cascli import plugins
from cascli.errors import UsageError
from cascli.strategies.base import Strategy

__all__ = ["Strategy", "load", "names", "parse"]


def names() -> list[str]:
    """The names of all strategies."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> type[Strategy]:
    """The class of the strategy `name`.

    Raises:
        UsageError: there is no such strategy.
    """
    return plugins.load(sys.modules[__name__], "strategy", name, Strategy)


def parse(text: str, k: int | None = None) -> Strategy:
    """Read a strategy with its parameters from one string such as `speculative-cascade:rule=opt,alpha=0.3`.

    Args:
        text: the name, then `:` and comma-separated `key=value` pairs if there are any.
        k: drafted tokens per round, if the string itself does not set it.

    Raises:
        UsageError: an unknown name or key, a missing `=`, a wrong type or a value out of range; a value of another
            package's plug-in whose own text is not read as the same value.
    """
    strategy = _read(text, k)
    if not all(map(plugins.is_own, [strategy, *(getattr(strategy, part) for part in strategy.parts())])):
        _check_written(text, strategy.spec)
    return strategy


def _check_written(text: str, spec: str) -> None:
    """Check that a strategy's own string is read as the same strategy, since results and files name it so."""
    try:
        again = _read(spec).spec
    except UsageError as error:
        why = str(error).removeprefix(f"strategy '{spec}': ")
        raise UsageError(f"strategy '{text}' is written as '{spec}', which cannot be read: {why}") from None
    if again != spec:
        raise UsageError(f"strategy '{text}' is written as '{spec}', which is read as '{again}'")


def _read(text: str, k: int | None = None) -> Strategy:
    name, _, rest = text.strip().partition(":")
    strategy_class = load(name.strip())
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"strategy '{text}': '{part}' should read key=value")
        if key.strip() in values:
            raise UsageError(f"strategy '{text}': '{key.strip()}' is given twice")
        values[key.strip()] = value.strip()
    if k is not None and "k" in strategy_class.keys({}):
        values.setdefault("k", str(k))
    try:
        return strategy_class.build(values)
    except UsageError as error:
        raise UsageError(f"strategy '{text}': {error}") from None
