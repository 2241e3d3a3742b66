"""An audit as lines, one per check, which can be printed as the checks are made."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cascli.audit.report import Audit, Check
from cascli.render.console import unicode_ok
from cascli.render.marks import short_name
from cascli.render.numbers import DASH

STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}
RESULT, KIND, SUBJECT, NUMBER = 7, 9, 32, 7
"""Widths of the columns: the same in every line, whatever later lines hold; 80 in all."""
WITH_DETAIL = 110
"""Terminal width from which what was done follows the numbers of every check."""


def heading(console: Console) -> Table:
    """The line above all checks."""
    words = [Text(word, style="bold") for word in ("result", "check", "of", "found", "bound", "alarm", "what was done")]
    return _line(words, detail=console.width >= WITH_DETAIL)


def row(check: Check, console: Console) -> RenderableType:
    """One check: its numbers, and what was done if there is room or it did not pass."""
    cells = [
        Text(check.status, style=STYLES[check.status]),
        Text(check.kind),
        Text(_subject(check.subject, fancy=unicode_ok(console))),
        *(Text(short(value)) for value in (check.statistic, check.bound, check.false_alarm)),
        Text(check.detail, style="dim"),
    ]
    wide = console.width >= WITH_DETAIL
    table = _line(cells, detail=wide)
    if not wide and check.status != "pass" and check.detail:
        return Group(table, Padding(cells[-1], (0, 0, 0, RESULT + 2), expand=False))
    return table


def _line(cells: Sequence[Text], *, detail: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in (RESULT, KIND, SUBJECT):
        table.add_column(width=width, overflow="fold")
    for _ in range(3):
        table.add_column(width=NUMBER, justify="right", no_wrap=True)
    if detail:
        table.add_column(overflow="fold")
    table.add_row(*(cells if detail else cells[:-1]))
    return table


def _subject(text: str, *, fancy: bool) -> str:
    """A strategy under its short name, which can wrap between words; anything else unchanged."""
    name, against, other = text.partition(" against ")
    return (short_name(name, fancy=fancy) if ":" in name else name) + against + other


def short(value: float | None) -> str:
    """A number in at most seven characters."""
    if value is None:
        return DASH
    return "0" if value == 0 else f"{value:.2g}"


def verdict(audit: Audit) -> str:
    """The result in one sentence."""
    failed = [check for check in audit.checks if check.status == "fail"]
    count = f"{len(audit.checks)} checks in {audit.seconds:.0f} s"
    names = ", ".join(f"{check.kind} of {check.subject}" for check in failed)
    skipped = sum(check.status == "skipped" for check in audit.checks)
    left = f"; {skipped} could not be made" if skipped else ""
    return (f"{count}: failed: {names}" if failed else f"{count}: none failed") + left
