"""A sweep's table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cascli.analysis.digits import compared
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.render.answer_costs import cost_tables, cost_verdict, prompts_table, table_notes
from cascli.render.categories import category_table
from cascli.render.columns import Column, ever_fewer, table_of
from cascli.render.console import fits, fitted, plain_table, unicode_ok, wrap_names
from cascli.render.marks import short_name
from cascli.render.matching import budget_lines, calls_of_sweep, matching_table
from cascli.render.numbers import DASH, bounds_text, counted, number, rate, tv
from cascli.render.sweep_words import (
    answers_vary,
    batches,
    caution,
    differences,
    findings,
    passed,
    scatter_kinds,
    temperature_of,
    unfinished,
)
from cascli.render.table import speed_text
from cascli.settings import TARGET
from cascli.sweeps.records import Header
from cascli.sweeps.table import SweepRow

NARROWEST_NAME = 23
"""Width left to a strategy's name if a table would otherwise be cut; less on a very narrow terminal."""


AGAINST_RANDOM = "against\nrandom"
"""Heading of the difference to random deferral, a column that is also dropped on a narrow terminal."""
QUALITY: list[Column[SweepRow]] = [
    Column("{metric}", lambda row: _with_scatter(row)),
    Column("against\ntarget", lambda row: _difference(row)),
    Column(AGAINST_RANDOM, lambda row: _against_random(row), always=False),
    Column("log p\nper\ntoken", lambda row: number(row.log_likelihood, 3), always=False),
    Column("answers", lambda row: f"{row.answers}" + (f"\n+{row.errors} failed" if row.errors else "")),
]
"""The last one is shown only if strategies differ in it."""
COST: list[Column[SweepRow]] = [
    Column("speed", speed_text),
    Column("tok/s", lambda row: number(row.tokens_per_second, 1), expendable=2),
    Column("target\ncalls", lambda row: number(row.target_calls_per_token, 3)),
    Column("drafts\npassed", lambda row: rate(passed(row)), always=False),
    Column("accept\nlength", lambda row: number(row.mean_acceptance_length), always=False),
    Column("deferral\nrate", lambda row: number(row.deferral_rate), expendable=1, always=False),
    Column("mean\nTV", lambda row: tv(row.mean_tv)),
]
"""Named as on `compare`'s page; columns are dropped on a narrow terminal if that saves a third table."""


def sweep_tables(
    rows: Sequence[SweepRow],
    metric: str,
    console: Console,
    *,
    header: Header | None = None,
    whole: str = "results.csv",
    verbose: bool = False,
) -> list[RenderableType]:
    """One line per strategy and temperature: quality, then its cost; and what the brackets mean.

    Quality and cost are one table if they fit side by side. Sentences below say what was found, as a report's first
    ones do, and notes what the numbers do not show.

    Args:
        rows: the rows.
        metric: how answers were scored.
        console: what they are drawn for.
        header: what the sweep was made from, if it is known.
        whole: the file that has what a narrow terminal has no room for.
        verbose: also show how prompts vary.
    """
    shown: list[RenderableType] = []
    short = False
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    for temperature in temperatures:
        here = [row for row in rows if row.temperature == temperature]
        if len(temperatures) > 1:
            shown += [*([""] if shown else []), Text(temperature_of(temperature), style="bold")]
        parts, cut = _parts(here, metric, console)
        shown += parts
        short |= cut
        for table in cost_tables(here, console, greedy=temperature == 0):
            shown += ["", table]
        over_prompts = prompts_table(here, console) if verbose else None
        shown += ["", over_prompts] if over_prompts is not None else []
        outcome = cost_verdict(here, fancy=unicode_ok(console))
        shown += ["", Text(outcome, style="bold")] if outcome is not None else []
    shown += [part for sentence in findings(rows, header) for part in ("", Text(sentence, style="bold"))]
    budgets, calls = header.budgets if header is not None else [], calls_of_sweep(rows)
    shown += ["", matching_table(budgets, calls)] if budgets and verbose else []
    more = [f"{whole} has more columns"] if short else []
    greedy = None if 0 in temperatures and len(temperatures) > 1 else temperatures == [0]
    costs = table_notes(rows, greedy=greedy) if any(row.costs for row in rows) else ""
    notes = ["; ".join([*_counts(rows), *batches(rows), *scatter_kinds(rows), *more]), costs, caution(rows) or ""]
    notes += [*budget_lines(budgets, calls), differences(header) or "", unfinished(header) or ""]
    return [*shown, "", *(Text(note, style="dim") for note in notes if note)]


def category_tables(groups: Mapping[str, Sequence[SweepRow]], metric: str, console: Console) -> list[RenderableType]:
    """Every prompt category, temperature by temperature; nothing if there are fewer than two."""
    shown: list[RenderableType] = []
    temperatures = list(dict.fromkeys(row.temperature for rows in groups.values() for row in rows))
    for temperature in temperatures:
        shown += ["", *([Text(temperature_of(temperature), style="bold")] if len(temperatures) > 1 else [])]
        here = {name: [row for row in rows if row.temperature == temperature] for name, rows in groups.items()}
        shown.append(category_table(here, console, metric))
    if shown:
        every = [row for rows in groups.values() for row in rows]
        shown += ["", Text("; ".join(scatter_kinds(every, differences=False)), style="dim")]
    return shown


def _counts(rows: Sequence[SweepRow]) -> list[str]:
    """The number of answers behind the numbers, if it is the same for all."""
    return [] if answers_vary(rows) else [f"{counted(rows[0].answers, 'answer')} per strategy"]


def _parts(rows: Sequence[SweepRow], metric: str, console: Console) -> tuple[list[RenderableType], bool]:
    """The tables of one temperature, separated by empty lines; and whether columns were left out to make them two."""
    quality, cost = with_values(QUALITY if answers_vary(rows) else QUALITY[:-1], rows), with_values(COST, rows)
    whole = _table(rows, quality + cost, metric, console)
    if fits(whole, console):
        return [whole], False
    kept_quality = quality
    if not fits(_narrow(rows, quality, metric, console), console):
        kept_quality = [column for column in quality if column.heading != AGAINST_RANDOM]
    fewer = list(ever_fewer(cost))
    fitting = [some for draw in (_table, _narrow) for some in fewer if fits(draw(rows, some, metric, console), console)]
    kept = next(iter(fitting), fewer[-1])
    tables = [
        table
        for columns in (kept_quality, kept)
        for table in fitted(columns, lambda some: _narrow(rows, some, metric, console), console)
    ]
    parted: list[RenderableType] = [part for table in tables for part in ("", table)]
    return parted[1:], len(kept) + len(kept_quality) < len(cost) + len(quality)


def with_values(columns: Sequence[Column[SweepRow]], rows: Sequence[SweepRow]) -> list[Column[SweepRow]]:
    """The columns, without those in which no row has a value."""
    return [column for column in columns if column.always or any(column.cell(row) != DASH for row in rows)]


def _narrow(rows: Sequence[SweepRow], columns: Sequence[Column[SweepRow]], metric: str, console: Console) -> Table:
    """A table whose names wrap if that makes it fit."""
    narrowest = min(NARROWEST_NAME, console.width // 3)
    return wrap_names(_table(rows, columns, metric, console), console, narrowest)


def _table(rows: Sequence[SweepRow], columns: Sequence[Column[SweepRow]], metric: str, console: Console) -> Table:
    named = [column._replace(heading=column.heading.format(metric=metric)) for column in columns]
    return table_of([short_name(row.strategy, fancy=unicode_ok(console)) for row in rows], rows, named, console)


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


def _with_scatter(row: SweepRow) -> str:
    return f"{number(row.quality, 3)} {bounds_text(row.quality_interval, row.quality_interval_kind)}".rstrip()


def _against_random(row: SweepRow) -> str:
    if row.quality_vs_random is None:
        return DASH
    bounds = bounds_text(row.quality_vs_random_interval, row.quality_vs_random_interval_kind, null=0)
    return f"{compared(row.quality_vs_random, row.quality_vs_random_interval, 0, 3)} {bounds}".rstrip()


def _difference(row: SweepRow) -> str:
    if row.quality_vs_target is None or row.strategy == TARGET:
        return DASH
    bounds = bounds_text(row.quality_vs_target_interval, row.quality_vs_target_interval_kind, null=0)
    return f"{compared(row.quality_vs_target, row.quality_vs_target_interval, 0, 3)} {bounds}".rstrip()
