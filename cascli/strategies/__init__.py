"""Decoding strategies, one file each, found by file name: `token_cascade.py` holds `token-cascade`.

Strategies import torch only while they decode, so that the command line can list and check them quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from cascli import plugins
from cascli.errors import CascliError, UsageError
from cascli.rules.base import OPTION, Rule
from cascli.strategies.base import Strategy
from cascli.trace import params_of, values_of

__all__ = ["Shown", "Strategy", "load", "names", "parse", "shown"]


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


class Shown(NamedTuple):
    """What is shown of a strategy whose answers were saved."""

    name: str
    params: Mapping[str, Any]
    rule: str | None
    """The rule's name, if there is one."""
    options: Mapping[str, Any]
    """Options that are not at their default: of the rule, or of a strategy without one; empty if that is unknown."""
    reads_draft: bool
    """Whether the rule's distribution depends on the draft model; True if that is unknown, and without a rule."""


def shown(spec: str) -> Shown:
    """What is shown of a strategy, given as its `spec`.

    It is taken from the text alone if the strategy cannot be created here: it uses a plug-in that is not installed or
    does not work, or whose parameters have changed.
    """
    try:
        strategy = parse(spec)
        params, rule = strategy.params, getattr(strategy, "rule", None)
    except CascliError:
        return Shown(spec.partition(":")[0], values_of(spec), params_of(spec).get("rule"), {}, reads_draft=True)
    owner = rule if isinstance(rule, Rule) else strategy
    options = [each.name for each in fields(owner) if OPTION in each.metadata]
    return Shown(
        strategy.name,
        params,
        str(params["rule"]) if "rule" in params else None,
        {key: params[key] for key in options if key in params},
        reads_draft=not isinstance(rule, Rule) or rule.reads_draft,
    )
