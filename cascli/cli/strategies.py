"""cascli strategies: every strategy, rule, drafter and stop with its formula, parameters, ranges and source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from cascli.cli import complete
from cascli.cli.options import Flags, with_shared
from cascli.errors import CascliError, UsageError, raised, unknown

NAME = "strategies"
EXAMPLE = """\
cascli strategies
cascli strategies opt
cascli strategies speculative token-cascade
cascli strategies opt -q
"""


@with_shared("json", "quiet", "color", quiet="Print only names; for the given ones, the strings to copy.")
def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Strategies, rules, drafters or stops; all by default.", autocompletion=complete.plugins),
    ] = None,
    *,
    flags: Flags,
) -> None:
    """List strategies, rules, drafters and stops: formula, parameters, when each is lossless, and how to write it."""
    from cascli import drafters, rules, stops, strategies
    from cascli.plugins import unreachable
    from cascli.render.catalogue import catalogue
    from cascli.render.console import screen
    from cascli.settings import from_environment, resolve

    settings = resolve(flags.given, from_environment())
    view = screen(settings.color, quiet=settings.quiet)
    packages = {"strategies": strategies, "rules": rules, "drafters": drafters, "stops": stops}
    selected = _selected(names or [], {each for package in packages.values() for each in package.names()})
    failed: list[str] = []
    report = failed.append if names else view.note  # what was asked for is an error if it cannot be shown
    for package in packages.values():
        for message in unreachable(package):
            view.note(message)
    plugins = {kind: list(_described(kind, package, selected, report)) for kind, package in packages.items()}
    if not any(plugins.values()):
        raise UsageError("\n".join(failed))
    if settings.json_output:
        print(json.dumps({"schema": "cascli.strategies/1", **plugins}))
    elif settings.quiet and names:
        print("\n".join(line for rows in plugins.values() for row in rows for line in row["written"]))
    elif settings.quiet:
        print("\n".join(row["name"] for row in plugins["strategies"]))
    else:
        view.out.print(catalogue(plugins))
    if failed:
        raise UsageError("\n".join(failed))


def _selected(names: Sequence[str], known: set[str]) -> set[str]:
    """The names to show; a full strategy string selects the strategy and the parts it names.

    Raises:
        UsageError: an unknown name, or a string that is not a strategy.
    """
    from cascli.strategies import parse

    selected: set[str] = set()
    for name in names:
        strategy, parameters, rest = name.replace(" ", "").partition(":")
        if parameters:
            parse(name)
        parts = [part.partition("=")[2] for part in rest.split(",") if part.startswith(("rule=", "draft=", "stop="))]
        for each in (strategy, *parts):
            if each not in known:
                raise UsageError(unknown("strategy, rule, drafter or stop", each, known))
            selected.add(each)
    return selected or known


def _described(
    kind: str, package: Any, selected: set[str], report: Callable[[str], object]
) -> Iterator[dict[str, Any]]:
    """Describe every wanted plug-in; a third-party one that cannot be imported is reported and hides no other."""
    from cascli.blame import label
    from cascli.plugins import is_own

    for name in package.names():
        plugin = None
        try:
            if name in selected:
                plugin = package.load(name)
                yield describe(name, plugin) | {"written": written(kind, name)}
        except CascliError as error:
            report(str(error))
        except Exception as error:  # whatever a third-party class raises
            if plugin is None or is_own(plugin):  # a file of cascli's own that cannot be imported
                raise
            report(f"{label(plugin)}: {raised(error)}")


def written(kind: str, name: str) -> list[str]:
    """The strategies that are, or use, a plug-in of this name: strings for `-s`, with what can be changed."""
    from cascli import strategies
    from cascli.plugins import is_own

    if kind == "strategies":
        return [strategies.parse(name).spec]
    key = {"rules": "rule", "drafters": "draft", "stops": "stop"}[kind]
    specs = []
    for strategy in strategies.names():
        try:
            if key not in strategies.load(strategy).parts():
                continue
            spec = strategies.parse(f"{strategy}:{key}={name}").spec
        except CascliError:  # valid only together with something else, or not at all
            continue
        except Exception:  # whatever a third-party strategy raises; it is reported where it is described
            if is_own(strategies.load(strategy)):
                raise
            continue
        else:
            # For the others, the parameters matter less, and the whole string would not fit on a terminal's line.
            length = "k=auto" if kind == "stops" and name != "never" else "k=4"
            specs.append(spec if kind == "rules" else f"{strategy}:{key}={name},{length}")
    return specs


def describe(name: str, plugin: Any) -> dict[str, Any]:
    """How a strategy, a rule, a drafter or a stop describes itself."""
    summary = getattr(plugin, "summary", "") or (plugin.__doc__ or "").splitlines()[0]
    description = {"name": name, "summary": summary, "source": plugin.source, "parameters": parameters(plugin)}
    for attribute in (
        *("formula", "lossless_when", "greedy", "relatives", "needs_model", "one_hot", "by_prefix", "reads_confidence"),
    ):
        if isinstance(value := getattr(plugin, attribute, None), bool | str):
            description[attribute] = value
    if getattr(plugin, "dial", None) is not None:
        description["dial"] = str(plugin.dial)
    return description


def parameters(plugin: Any) -> list[dict[str, Any]]:
    """Name, default and range of each parameter."""
    hints = get_type_hints(plugin, include_extras=True)
    rows = []
    for field in fields(plugin):
        part = plugin.parts().get(field.name) if hasattr(plugin, "parts") else None
        if part is not None:
            rows.append({"name": field.name, "default": part.default, "range": f"one of the {part.kind}s below"})
            continue
        default = None if field.default is MISSING else field.default
        rows.append({"name": field.name, "default": default, "range": _range(hints[field.name])})
    return rows


_ENDS = (("ge", "gt"), ("le", "lt"))
_BOUNDS = ("ge", "gt", "le", "lt")


def _range(hint: Any) -> str:
    """The allowed values of an annotated type, in words; for an optional one, those of its value."""
    given = [each for each in get_args(hint) if each is not type(None)]
    if type(None) in get_args(hint) and len(given) == 1:
        return f"{_range(given[0])}; optional"
    if getattr(hint, "__metadata__", None):
        parts = [part for info in hint.__metadata__ for part in getattr(info, "metadata", [info])]
        bounds = {name: getattr(part, name) for part in parts for name in _BOUNDS if hasattr(part, name)}
        low, high = (next((n for n in (bounds.get(a), bounds.get(b)) if n is not None), None) for a, b in _ENDS)
        words = [f"above {low}" if "gt" in bounds else str(low)] if low is not None else []
        words += [f"below {high}" if "lt" in bounds else f"to {high}"] if high is not None else []
        if not words:
            return "any number"
        return " ".join(words) if high is not None else f"{words[0]} or more" if "ge" in bounds else words[0]
    if len(given) > 1 and any(get_origin(each) is not None for each in given):
        return " or ".join(map(_range, given))
    return ", ".join(map(str, get_args(hint))) or getattr(hint, "__name__", "")
