"""cascli strategies: every strategy, rule and drafter with its formula, parameters, ranges and source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError
from cascli.settings import from_environment, resolve

if TYPE_CHECKING:
    from cascli.render.console import Screen

NAME = "strategies"
EXAMPLE = "Example: cascli strategies[bold] · [/]cascli strategies --json"


@with_shared("json", "quiet", "color")
def command(*, flags: Flags) -> None:
    """List every strategy, deferral rule and drafter: formula, parameters, ranges, when it is lossless, source."""
    from cascli import drafters, rules, strategies
    from cascli.render.catalogue import catalogue
    from cascli.render.console import screen

    settings = resolve(flags.given, from_environment())
    view = screen(settings.color, quiet=settings.quiet)
    packages = (("strategies", strategies), ("rules", rules), ("drafters", drafters))
    plugins = {kind: list(_described(package, view)) for kind, package in packages}
    if settings.json_output:
        print(json.dumps({"schema": "cascli.strategies/1", **plugins}))
    elif settings.quiet:
        print("\n".join(row["name"] for row in plugins["strategies"]))
    else:
        view.out.print(catalogue(plugins))


def _described(package: Any, view: Screen) -> Iterator[dict[str, Any]]:
    """Every plug-in; one of another package that cannot be imported is told of, and hides no other."""
    for name in package.names():
        try:
            yield describe(name, package.load(name))
        except UsageError as error:
            view.note(str(error))


def describe(name: str, kind: Any) -> dict[str, Any]:
    """What a strategy, a rule or a drafter says of itself."""
    summary = getattr(kind, "summary", "") or (kind.__doc__ or "").splitlines()[0]
    told = {"name": name, "summary": summary, "source": kind.source, "parameters": parameters(kind)}
    for attribute in ("formula", "lossless_when", "needs_model", "one_hot", "by_prefix", "reads_confidence"):
        if isinstance(value := getattr(kind, attribute, None), bool | str):
            told[attribute] = value
    return told


def parameters(kind: Any) -> list[dict[str, Any]]:
    """Name, default and range of each parameter."""
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in fields(kind):
        part = kind.parts().get(field.name) if hasattr(kind, "parts") else None
        if part is not None:
            rows.append({"name": field.name, "default": part.default, "range": f"one of the {part.kind}s below"})
            continue
        default = None if field.default is MISSING else field.default
        rows.append({"name": field.name, "default": default, "range": _range(hints[field.name])})
    return rows


def _range(hint: Any) -> str:
    """The allowed values of an annotated type, in words."""
    if getattr(hint, "__metadata__", None):
        bounds = [bound for info in hint.__metadata__ for bound in getattr(info, "metadata", [])]
        low = next((bound.ge for bound in bounds if hasattr(bound, "ge")), None)
        high = next((bound.le for bound in bounds if hasattr(bound, "le")), None)
        return f"{low} to {high}" if low is not None else "any number"
    return ", ".join(map(str, get_args(hint))) or getattr(hint, "__name__", "")
