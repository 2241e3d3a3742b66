"""A sweep's table on the terminal and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.render.console import fits, fitted, plain_table
from cascli.render.marks import heading
from cascli.render.numbers import number, tv
from cascli.sweep.rule_estimate import RuleEstimate
from cascli.sweep.table import SweepRow


class Column(NamedTuple):
    """A heading, and what a row has below it."""

    heading: str
    cell: Callable[[SweepRow], str]


QUALITY = [
    Column("{metric}\n({kind})", lambda row: _with_interval(row.quality, row.quality_interval)),
    Column("against\ntarget", lambda row: _difference(row)),
    Column("answers", lambda row: f"{row.answers}" + (f"\n+{row.errors} failed" if row.errors else "")),
]
COST = [
    Column("tokens/s", lambda row: number(row.tokens_per_second)),
    Column("speed vs\ntarget", lambda row: number(row.speed_vs_target, 2, "x")),
    Column("target\ncalls", lambda row: number(row.target_calls_per_token, 3)),
    Column("rejection\nrate", lambda row: number(row.rejection_rate, 3)),
    Column("deferral\nrate", lambda row: number(row.deferral_rate)),
    Column("mean\nTV", lambda row: tv(row.mean_tv)),
]
LIKELIHOOD = Column("log p of\na token", lambda row: number(row.log_likelihood, 3))


def sweep_tables(rows: Sequence[SweepRow], metric: str, console: Console) -> list[Table]:
    """One line a strategy and temperature: quality, then what it costs; two tables on narrow screens."""
    quality = QUALITY + ([LIKELIHOOD] if any(row.log_likelihood is not None for row in rows) else [])
    parts = [quality + COST] if fits(_table(rows, quality + COST, metric, console), console) else [quality, COST]
    return [
        table
        for columns in parts
        for table in fitted(columns, lambda some: _table(rows, some, metric, console), console)
    ]


def kinds_of(rows: Sequence[SweepRow]) -> str:
    """What stands in brackets behind a quality: an interval, or the range of a few prompts."""
    kinds = {row.quality_interval_kind for row in rows if row.quality_interval is not None}
    return "range" if kinds and kinds <= {"range", "no scatter"} else "95%"


def _table(rows: Sequence[SweepRow], columns: Sequence[Column], metric: str, console: Console) -> Table:
    table = plain_table(console)
    table.add_column("strategy", no_wrap=True, style="bold")
    for column in columns:
        heading_text = column.heading.format(metric=metric, kind=kinds_of(rows))
        table.add_column(heading_text, justify="right", no_wrap=True, vertical="top")
    several = len({row.temperature for row in rows}) > 1
    for row in rows:
        name = heading(row.strategy, False) + (f"\nT = {row.temperature:g}" if several else "")
        table.add_row(Text(name), *(column.cell(row) for column in columns))
    return table


SHOWN_ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def estimates_table(estimates: Sequence[RuleEstimate], k: int, console: Console) -> Table:
    """Every rule at a few alphas, estimated along recorded prefixes."""
    table = plain_table(console)
    table.add_column("rule", no_wrap=True, style="bold")
    headings = ("alpha", "acceptance", "deferral\nrate", "mean TV", "max TV", f"target calls\nper token, k={k}")
    for name in headings:
        table.add_column(name, justify="right", no_wrap=True, vertical="top")
    several = len({each.temperature for each in estimates}) > 1
    for each in estimates:
        if each.alpha not in SHOWN_ALPHAS:
            continue
        at = f", T = {each.temperature:g}" if several else ""
        table.add_row(
            f"{each.rule}{at}" if each.alpha == SHOWN_ALPHAS[0] else "",
            number(each.alpha, 3),
            number(each.acceptance, 3),
            number(each.deferral_rate, 3),
            tv(each.mean_tv),
            tv(each.max_tv),
            number(each.target_calls_per_token, 3),
        )
    return table


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    text = number(value, 3)
    return text if interval is None else f"{text} ({interval[0]:.2f}-{interval[1]:.2f})"


def _difference(row: SweepRow) -> str:
    if row.quality_vs_target is None or row.strategy == "target":
        return number(None)
    bounds = None if row.quality_vs_target_interval_kind == "no scatter" else row.quality_vs_target_interval
    text = f"{row.quality_vs_target:+.3f}"
    return text if bounds is None else f"{text} ({bounds[0]:+.2f} to {bounds[1]:+.2f})"
