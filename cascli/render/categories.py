"""Acceptance, cost and distance by prompt category, for `compare` and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.render.columns import Column, on_a_page
from cascli.render.console import plain_table, unicode_ok
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, bounds_text, count, counted, number, rate, tv
from cascli.render.table import speed_text

if TYPE_CHECKING:
    from cascli.analysis.comparison import Row
    from cascli.render.answer_costs import Priced
    from cascli.sweeps.table import SweepRow

    Groups = Mapping[str, Sequence[Row]] | Mapping[str, Sequence[SweepRow]]


def _calls(row: Priced) -> str:
    return DASH if row.costs is None else number(row.costs.target_calls_per_answer, 1)


def _quality(row: Priced) -> str:
    """The mean score in a sweep, with its bounds over the category's prompts."""
    value, bounds, kind = (getattr(row, f"quality{end}", None) for end in ("", "_interval", "_interval_kind"))
    return f"{number(value)} {bounds_text(bounds, kind)}".rstrip()


COLUMNS: list[Column[Priced]] = [
    Column("drafts\npassed", lambda row: rate(row.tested_acceptance_rate)),
    Column("accept\nlength", lambda row: number(row.mean_acceptance_length)),
    Column("calls\nper\nprompt", _calls),
    Column("mean\nTV", lambda row: tv(row.mean_tv_to_target)),
    Column("tokens\nper\nturn", lambda row: DASH if row.mean_answer_tokens is None else count(row.mean_answer_tokens)),
    Column("speed", speed_text),
]
"""The last ones are dropped first if there is no room, down to four. Calls cover all turns of a prompt."""


def category_table(groups: Groups, console: Console, metric: str | None = None) -> Table:
    """Every category, with one line per strategy; `metric` is what a sweep's answers are scored by."""
    columns = [*([] if metric is None else [Column(metric, _quality)]), *COLUMNS]
    ranked = [column._replace(expendable=max(place - 3, 0)) for place, column in enumerate(columns)]
    return on_a_page(ranked, lambda few: _table(groups, few, console), console)


def _table(groups: Groups, columns: Sequence[Column[Priced]], console: Console) -> Table:
    table = plain_table(console)
    table.add_column("by category", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True, vertical="top")
    for name, rows in groups.items():
        table.add_row(Text(_heading(name, rows), style="bold"))
        for row in rows:
            strategy = short_name(row.strategy, fancy=unicode_ok(console))
            table.add_row(Text(f"  {strategy}"), *(column.cell(row) for column in columns))
    return table


def _heading(name: str, rows: Sequence[Priced]) -> str:
    prompts = max((row.num_prompts or 0 for row in rows), default=0)
    return f"{name or '(no category)'}, {counted(prompts, 'prompt')}"
