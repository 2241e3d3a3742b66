"""The list of strategies, rules and drafters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text


def catalogue(plugins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Group:
    """Strategies, rules, then drafters, a short paragraph each."""
    titles = {"strategies": "Strategies", "rules": "Deferral rules", "drafters": "Drafters"}
    return Group(*(part for kind, title in titles.items() for part in _section(title, plugins[kind])))


def _section(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Text | Padding]:
    yield Text(title, style="bold underline")
    for row in rows:
        head = Text(row["name"], style="bold cyan")
        head.append(f"  {row['summary']}", style="default not bold")
        yield head
        for label, value in _lines(row):
            yield Padding(Text.assemble((f"{label:<9}", "dim"), value), (0, 0, 0, 4), expand=False)
    yield Text("")


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "formula" in row:
        yield "formula", row["formula"]
    for parameter in row["parameters"]:
        yield "param", f"{parameter['name']}={parameter['default']}  ({parameter['range']})"
    if "lossless_when" in row:
        yield "lossless", row["lossless_when"]
    if row.get("reads_confidence"):
        yield "needs", "a draft that is not certain of every token"
    if "by_prefix" in row:
        yield "q", _q(row)
    if row["source"]:
        yield "source", row["source"]


def _q(row: Mapping[str, Any]) -> str:
    """What a drafter's distributions are like; where they depend on the rounds, so do the outputs of lossy rules."""
    sure = "one-hot" if row["one_hot"] else "a distribution"
    if row["by_prefix"]:
        return f"{sure}, of the text before a position alone"
    return f"{sure}, planned where a round begins: lossy rules depend on it"
