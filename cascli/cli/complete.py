"""Shell completion: pair, strategy and rule names, without loading anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args


def pairs(incomplete: str) -> list[str]:
    """Built-in pairs."""
    from cascli.config import pair_files

    return [name for name in pair_files() if name.startswith(incomplete)]


def sweeps(incomplete: str) -> list[str]:
    """Built-in sweeps."""
    from cascli.config import sweep_files

    return [name for name in sweep_files() if name.startswith(incomplete)]


def strategies(incomplete: str) -> list[str]:
    """Strategy names; after `name:` its parameters; after `rule=`, `draft=` and `stop=` the available plug-ins."""
    from cascli import drafters, rules, stops
    from cascli import strategies as all_strategies

    for key, package in (("rule=", rules), ("draft=", drafters), ("stop=", stops)):
        head, separator, tail = incomplete.rpartition(key)
        if separator and "," not in tail:
            return [f"{head}{key}{name}" for name in package.names() if name.startswith(tail)]
    name, colon, rest = incomplete.partition(":")
    if colon:
        return _parameters(name, rest)
    return [name for name in all_strategies.names() if name.startswith(incomplete)]


def rules(incomplete: str) -> list[str]:
    """Comma-separated rule names, or `all`."""
    from cascli import rules as package

    before, comma, partial = incomplete.rpartition(",")
    names = package.names() if comma else ["all", *package.names()]
    return [f"{before}{comma}{name}" for name in names if name.startswith(partial) and name not in before.split(",")]


def one_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Completion with these names, such as the formats that a command writes."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _parameters(name: str, rest: str) -> list[str]:
    """The parameters that may come next, each with its `=`; none for an unknown strategy."""
    from cascli import strategies as all_strategies
    from cascli.errors import UsageError

    before, comma, partial = rest.rpartition(",")
    if "=" in partial:
        return []
    given = dict(part.partition("=")[::2] for part in before.split(",") if part)
    try:
        known = all_strategies.load(name).keys(given)
    except UsageError:
        return []
    return [f"{name}:{before}{comma}{key}=" for key in known if key.startswith(partial) and key not in given]


def plugins(incomplete: str) -> list[str]:
    """Strategies, rules, drafters and stops."""
    from cascli import drafters, rules, stops
    from cascli import strategies as all_strategies

    names = {name for package in (all_strategies, rules, drafters, stops) for name in package.names()}
    return [name for name in sorted(names) if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Device names."""
    return [name for name in ("auto", "cpu", "cuda") if name.startswith(incomplete)]


def dtypes(incomplete: str) -> list[str]:
    """Precisions."""
    from cascli.settings import Dtype

    return [name for name in get_args(Dtype) if name.startswith(incomplete)]


def colors(incomplete: str) -> list[str]:
    """When to use colour."""
    return [name for name in ("auto", "always", "never") if name.startswith(incomplete)]


def prompts(incomplete: str) -> list[str]:
    """Names of prompt sets, and the JSONL files and folders that match the path typed so far."""
    from cascli.weights.prompt_sets import SETS

    folder, name = Path(incomplete).parent, Path(incomplete).name
    if not incomplete or incomplete.endswith("/"):
        folder, name = Path(incomplete or "."), ""
    words = [each for each in ("builtin", *SETS) if each.startswith(incomplete)]
    try:
        entries = sorted(each for each in folder.iterdir() if each.name.startswith(name))
    except OSError:
        return words
    lead = incomplete[: len(incomplete) - len(name)]
    return words + [f"{lead}{each.name}{'/' if each.is_dir() else ''}" for each in entries if _is_offered(each, name)]


def _is_offered(path: Path, partial: str) -> bool:
    """Whether a folder or JSONL file is offered; hidden ones only if their dot was typed."""
    return (path.is_dir() or path.suffix == ".jsonl") and path.name.startswith(".") <= partial.startswith(".")
