"""The comparison as a table: one on a wide terminal, two on a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cascli.analysis.comparison import Row
from cascli.analysis.digits import compared
from cascli.render.columns import Column, on_a_page, table_of
from cascli.render.console import fits, fitted, unicode_ok
from cascli.render.marks import heading, short_name
from cascli.render.numbers import (
    DASH,
    bounds_text,
    number,
    operations,
    percentile_text,
    rate,
    seconds,
    size,
    tv,
    yes_no,
)
from cascli.settings import TARGET

if TYPE_CHECKING:
    from cascli.render.answer_costs import Priced


def speed_text(row: Priced) -> str:
    """The speed over the target's, with its bounds if it scatters."""
    if row.speed_vs_target is None:
        return DASH
    text = compared(row.speed_vs_target, row.speed_interval, 1)
    return f"{text}x {bounds_text(row.speed_interval, row.speed_interval_kind, null=1)}".rstrip()


KINDS = {"95%": "( ) 95% interval over", "range": "[ ] range over"}
"""What the brackets after a speed mean."""


def scatter_line(rows: Sequence[Row]) -> str | None:
    """What the brackets after the speeds mean."""
    kinds = {(row.speed_interval_kind, row.speed_interval_over) for row in rows if row.speed_interval is not None}
    meanings = [f"{KINDS[kind]} {over}" for kind, over in kinds if kind is not None and kind != "no scatter"]
    return f"speeds: {', '.join(sorted(meanings))}" if meanings else None


def _divergence(row: Row) -> str:
    if row.same_as_target is None or row.strategy == TARGET:
        return DASH
    return "none" if row.first_divergence is None else f"#{row.first_divergence + 1}"


def _tokens(row: Row) -> str:
    return f"{row.tokens}{' cut' if row.answers_cut else ''}"


def _text(row: Row) -> str:
    if row.strategy == TARGET or (row.same_as_target is None and (row.answers or 0) < 2):
        return DASH
    if row.same_as_target:
        return "same"
    if row.answers is not None and row.answers > 1:
        return f"{row.answers_same} of {row.answers}"
    return "differs" if row.first_divergence is None else f"from #{row.first_divergence + 1}"


PAGE: list[Column[Row]] = [
    Column("speed", speed_text),
    Column("tok/s", lambda row: number(row.tokens_per_second, 1), expendable=1),
    Column("tokens", _tokens, expendable=7),
    Column("target\ncalls", lambda row: number(row.target_calls_per_token), expendable=2),
    Column("drafts\npassed", lambda row: rate(row.tested_acceptance_rate), expendable=4),
    Column("q(I)", lambda row: number(row.shared_mass), expendable=5),
    Column("mean\nTV", lambda row: tv(row.mean_tv_to_target), expendable=6),
    Column("loss-\nless", lambda row: yes_no(row.lossless), expendable=3),
    Column("same\ntext", _text),
]
"""What fits on a page: speed over the target, tokens written (cut: at the limit), target calls per token, the text."""
COST: list[Column[Row]] = [
    Column("tokens", _tokens),
    Column("tokens/s", lambda row: number(row.tokens_per_second)),
    Column("speed vs\ntarget", speed_text),
    Column("target calls\nper token", lambda row: number(row.target_calls_per_token)),
    Column("draft calls\nper token", lambda row: number(row.draft_calls_per_token)),
]
LAW: list[Column[Row]] = [
    Column("drafts\npassed", lambda row: rate(row.tested_acceptance_rate)),
    Column("q(I)", lambda row: number(row.shared_mass)),
    Column("accept\nlength", lambda row: number(row.mean_acceptance_length)),
    Column("deferral\nrate", lambda row: number(row.deferral_rate)),
    Column("mean\nTV", lambda row: tv(row.mean_tv_to_target)),
    Column("lossless", lambda row: yes_no(row.lossless)),
    Column("first\ndiff", _divergence),
]


def _times(field: str) -> Callable[[Row], str]:
    return lambda row: percentile_text(getattr(row, field), seconds)


TIMES: list[Column[Row]] = [
    Column("first token\np50 / p90 / p99", _times("ttft")),
    Column("later token\np50 / p90 / p99", _times("seconds_per_token")),
    Column("round\np50 / p90 / p99", _times("round_seconds")),
    Column("outside\nmodels", lambda row: number(row.other_share)),
    Column("GFLOP\nper token", lambda row: operations(row.flops_per_token)),
    Column("weights read\nper token", lambda row: size(row.weight_bytes_per_token)),
    Column("peak\nmemory", lambda row: size(row.peak_memory_bytes)),
]


def page_table(rows: Sequence[Row], console: Console) -> Table:
    """One line per strategy, with as many columns as fit a page; the least informative are dropped first."""
    names = [short_name(row.strategy, oracle=row.oracle, fancy=unicode_ok(console)) for row in rows]
    return on_a_page(page_columns(rows), lambda few: table_of(names, rows, few, console), console)


def page_columns(rows: Sequence[Row]) -> list[Column[Row]]:
    """The columns of `PAGE` that say something of these rows."""
    return _known(PAGE, rows)


def tables(rows: Sequence[Row], console: Console) -> list[Table]:
    """The tables of every figure, one below the other. No number is ever cut."""
    names = [heading(row.strategy, row.oracle) for row in rows]

    def draw(columns: Sequence[Column[Row]]) -> Table:
        return table_of(names, rows, columns, console)

    law = _known(law_columns(rows), rows)
    parts = [COST + law] if fits(draw(COST + law), console) else [COST, law]
    return [table for columns in (*parts, TIMES) for table in fitted(columns, draw, console)]


def law_columns(rows: Sequence[Row]) -> list[Column[Row]]:
    """`LAW`; for several answers, how many are the same replaces where the first differs."""
    one = all((row.answers or 0) < 2 for row in rows)
    return LAW if one else [*LAW[:-1], Column("same\ntext", _text)]


def _known(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> list[Column[Row]]:
    """The columns, without q(I) if the models share a tokenizer."""
    translated = any(row.shared_mass is not None for row in rows)
    return [column for column in columns if translated or column.heading != "q(I)"]
