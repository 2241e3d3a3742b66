"""Columns of the tables with one line per strategy, and which of them a narrow terminal has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.render.console import WIDEST, fits, plain_table

R = TypeVar("R")


class Column(NamedTuple, Generic[R]):
    """A heading, and how a row fills it."""

    heading: str
    cell: Callable[[R], str]
    expendable: int = 0
    """When it is dropped for lack of room: the highest first, 0 never."""
    always: bool = True
    """Whether it is shown even if no row has a value."""


def table_of(names: Sequence[str], rows: Sequence[R], columns: Sequence[Column[R]], console: Console) -> Table:
    """A table with one line per row, each headed by its strategy's name."""
    table = plain_table(console)
    table.add_column("strategy", no_wrap=True, style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True, vertical="top")
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name), *(column.cell(row) for column in columns))
    return table


def ever_fewer(columns: Sequence[Column[R]]) -> Iterator[list[Column[R]]]:
    """All columns, then without the most expendable ones, and so on down to those that always stay."""
    for level in range(max(column.expendable for column in columns) + 1, 0, -1):
        yield [column for column in columns if column.expendable < level]


def on_a_page(columns: Sequence[Column[R]], draw: Callable[[Sequence[Column[R]]], Table], console: Console) -> Table:
    """The table with as many columns as fit a page; if still too wide, names wrap and no number is cut."""
    for few in ever_fewer(columns):
        table = draw(few)
        if fits(table, console, WIDEST):
            break
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    return table
