"""The list of strategies, rules, drafters and stops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cascli.sampling.parameters import AUTO_DRAFTED

SYMBOLS = {
    "q, p": "the distributions that draft and target draw tokens from: after temperature, top-k and top-p",
    "q1, p1": "the same at temperature 1, before top-k and top-p",
    "max q1": "the likeliest token's probability",
    "T(q, p)": "what a rule makes of q and p",
    "pi": "the distribution that the output follows; lossless where pi = p",
    "x, v": "a drafted token; any token",
    "norm": "scaled to sum to 1",
    "TV(p, q)": "total variation: the sum over tokens of max(0, p - q), from 0 (equal) to 1 (nothing in common)",
    "k": f"drafted tokens per round; with a stop, the maximum; with k=auto, at most {AUTO_DRAFTED}",
    "K": "the tokens that a rule keeps",
    "tail": "what happens to a draft that is not kept: cut redraws it from p; exact keeps it with min(1, p / q)",
    "top": "keep only this many of the target's likeliest tokens",
    "where": "apply only between the pair's tokens <think> and </think>; elsewhere pi = p",
    "remember": "also look for drafts in this many earlier texts (prompts and answers) of the same strategy",
    "d": "tokens that a round has drafted so far",
    "c, v(n)": "cost of a draft step, and of a check of n drafted tokens, in target steps",
    "H": "entropy, in nats",
    "KL, js": "relative entropy and Jensen-Shannon divergence, in nats",
    "T": "the temperature",
}
"""The symbols in formulas."""


def catalogue(plugins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Group:
    """Strategies, rules, drafters, then stops, a short paragraph each; then the meaning of the symbols in formulas."""
    titles = {"strategies": "Strategies", "rules": "Deferral rules", "drafters": "Drafters", "stops": "Stops"}
    parts = [part for kind, title in titles.items() if plugins[kind] for part in _section(title, plugins[kind])]
    symbols = [_labelled(symbol, meaning) for symbol, meaning in SYMBOLS.items()]
    return Group(*parts, Text("Symbols", style="bold underline"), *symbols)


def _labelled(label: str, value: str) -> Padding:
    """A label and its text, with later lines aligned below the first."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=8, style="dim")
    row.add_column(overflow="fold")
    row.add_row(Text(label), Text(value))
    return Padding(row, (0, 0, 0, 4), expand=False)


def _section(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Text | Padding]:
    yield Text(title, style="bold underline")
    for row in rows:
        head = Text(row["name"], style="bold")
        head.append(f"  {row['summary']}", style="default not bold")
        yield head
        for label, value in _lines(row):
            yield _labelled(label, value)
    yield Text("")


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "formula" in row:
        yield "formula", row["formula"]
    for parameter in row["parameters"]:
        default = "" if parameter["default"] is None else f"={parameter['default']}"
        yield "param", f"{parameter['name']}{default}  ({parameter['range']})"
    labels = {"dial": "dial", "lossless": "lossless_when", "at T = 0": "greedy", "see": "relatives"}
    yield from ((label, row[key]) for label, key in labels.items() if row.get(key))
    if row.get("reads_confidence"):
        yield "needs", "a draft that is not certain of every token"
    if "by_prefix" in row:
        yield "q", _q(row)
    if row["source"]:
        yield "source", row["source"]
    for spec in row.get("written", ()):
        yield "write", spec


def _q(row: Mapping[str, Any]) -> str:
    """A drafter's distributions, in words; if they depend on the rounds, so does the output of lossy rules."""
    sure = "one-hot" if row["one_hot"] else "a distribution"
    if row["by_prefix"]:
        return f"{sure} that depends only on the text before a position"
    return f"{sure}, planned when a round begins: lossy rules depend on where that is"
