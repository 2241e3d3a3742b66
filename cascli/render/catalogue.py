"""The list of strategies and rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text


def catalogue(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Group:
    """Strategies, then rules, a short paragraph each."""
    return Group(*_section("Strategies", found["strategies"]), *_section("Deferral rules", found["rules"]))


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
    yield "law", row["formula"]
    for parameter in row["parameters"]:
        yield "param", f"{parameter['name']}={parameter['default']}  ({parameter['range']})"
    yield "lossless", row["lossless_when"]
    if row["source"]:
        yield "source", row["source"]
