"""The comparison as a table: one on a wide terminal, two on a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from cascli.comparison import Row
from cascli.render.console import plain_table
from cascli.render.marks import heading
from cascli.render.numbers import number, tv, yes_no

WIDE = 124


class Column(NamedTuple):
    """A column of the table: heading, and how a row fills it."""

    heading: str
    cell: Callable[[Row], str]


def _name(row: Row) -> str:
    return heading(row.strategy, row.oracle)


def _speed(row: Row) -> str:
    text = number(row.speed_vs_target, 2, "x")
    if row.speed_interval is not None:
        low, high = row.speed_interval
        text += f" ({low:.2f}-{high:.2f})"
    return text


def _divergence(row: Row) -> str:
    if row.same_as_target is None:
        return number(None)
    return (
        number(None)
        if row.strategy == "target"
        else ("none" if row.first_divergence is None else f"#{row.first_divergence + 1}")
    )


COST = [
    Column("tokens/s", lambda row: number(row.tokens_per_second)),
    Column("speed vs\ntarget", _speed),
    Column("target calls\nper token", lambda row: number(row.target_calls_per_token)),
    Column("draft calls\nper token", lambda row: number(row.draft_calls_per_token)),
]
LAW = [
    Column("accept\nrate", lambda row: number(row.draft_acceptance_rate)),
    Column("accept\nlength", lambda row: number(row.mean_acceptance_length)),
    Column("deferral\nrate", lambda row: number(row.deferral_rate)),
    Column("mean\nTV", lambda row: tv(row.mean_tv_to_target)),
    Column("lossless", lambda row: yes_no(row.lossless)),
    Column("first\ndiff", _divergence),
]


def tables(rows: Sequence[Row], console: Console) -> list[Table]:
    """The tables to print, one below the other."""
    parts = [COST + LAW] if console.width >= WIDE else [COST, LAW]
    return [_table(rows, columns, console) for columns in parts]


def _table(rows: Sequence[Row], columns: Sequence[Column], console: Console) -> Table:
    table = plain_table(console)
    table.add_column("strategy", no_wrap=True, style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True, vertical="top")
    for row in rows:
        table.add_row(_name(row), *(column.cell(row) for column in columns))
    return table
