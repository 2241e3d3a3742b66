"""The tables of a sweep's page: strategies, and categories of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cascli.analysis.digits import bounds_apart, compared
from cascli.analysis.statistics import IntervalKind
from cascli.render.html_text import text
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, counted, number, rate, tv
from cascli.render.sweep_words import answers_vary, is_beyond_chance, passed, temperature_of
from cascli.settings import TARGET
from cascli.sweeps.table import SweepRow, calls_per_answer


class Column(NamedTuple):
    """A heading, a cell as HTML, and whether it gets a line of its own on a small screen."""

    heading: str
    cell: Callable[[SweepRow], str]
    both: bool = False


def _columns(rows: Sequence[SweepRow], metric: str) -> list[Column]:
    """The columns in which some row has a value; results.csv has more, too many for a laptop's width."""
    columns = [
        Column(metric, _quality, both=True),
        Column("against target", _difference, both=True),
        Column("against random", _against_random, both=True),
        Column("speed", _speed, both=True),
        Column("target calls per answer", lambda row: number(calls_per_answer(row), 1), both=True),
        Column("drafts passed", lambda row: rate(passed(row))),
        Column("accept length", lambda row: number(row.mean_acceptance_length)),
        Column("deferral rate", lambda row: number(row.deferral_rate)),
        Column("mean TV", lambda row: tv(row.mean_tv)),
        Column("log p per token", lambda row: number(row.log_likelihood, 3)),
    ]
    if answers_vary(rows):
        columns.append(Column("answers", _answers))
    return [column for column in columns if any(column.cell(row) != DASH for row in rows)]


def strategies_table(rows: Sequence[SweepRow], metric: str) -> str:
    """One line per strategy, temperature by temperature; a cell holds a value or a difference with its interval."""
    columns = _columns(rows, metric)
    head = "".join(f'<th scope="col">{text(column.heading)}</th>' for column in columns)
    bodies = []
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    for temperature in temperatures:
        lines = [_line(row, columns) for row in rows if row.temperature == temperature]
        if len(temperatures) > 1:
            lines.insert(0, _group(temperature, len(columns)))
        bodies.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
    head = f'<thead><tr><th scope="col">strategy</th>{head}</tr></thead>'
    return f'<table class="wide">\n{head}\n' + "\n".join(bodies) + "\n</table>"


def _group(temperature: float, columns: int) -> str:
    return f'<tr class="group"><th colspan="{columns + 1}">{text(temperature_of(temperature))}</th></tr>'


def _line(row: SweepRow, columns: Sequence[Column]) -> str:
    return f"<tr>{_name(row.strategy)}{''.join(_cell(row, column) for column in columns)}</tr>"


def _cell(row: SweepRow, column: Column) -> str:
    alone = ' class="both"' if column.both else ""
    return f'<td{alone} data-label="{text(column.heading)}"><span>{column.cell(row)}</span></td>'


def _name(strategy: str) -> str:
    return f'<th scope="row" title="{text(strategy)}">{text(short_name(strategy))}</th>'


def _quality(row: SweepRow) -> str:
    return f"{number(row.quality, 3)}{_bounds(row.quality_interval, row.quality_interval_kind)}"


def _difference(row: SweepRow) -> str:
    """The difference to the target, coloured if it is beyond chance."""
    if row.quality_vs_target is None or row.strategy == TARGET:
        return DASH
    bounds, kind = row.quality_vs_target_interval, row.quality_vs_target_interval_kind
    return _signed(row.quality_vs_target, bounds, kind, beyond=is_beyond_chance(row))


def _against_random(row: SweepRow) -> str:
    """The difference to random deferral, coloured if its 95% interval excludes 0."""
    if row.quality_vs_random is None:
        return DASH
    bounds, kind = row.quality_vs_random_interval, row.quality_vs_random_interval_kind
    beyond = kind == "95%" and bounds is not None and not bounds[0] <= 0 <= bounds[1]
    return _signed(row.quality_vs_random, bounds, kind, beyond=beyond)


def _signed(difference: float, bounds: tuple[float, float] | None, kind: IntervalKind | None, *, beyond: bool) -> str:
    value = compared(difference, bounds, 0, 3)
    if beyond:
        value = f'<span class="{"better" if difference > 0 else "worse"}">{value}</span>'
    return value + _bounds(bounds, kind, 0)


def _bounds(bounds: tuple[float, float] | None, kind: IntervalKind | None, null: float | None = None) -> str:
    if bounds is None:
        return ""
    if kind == "no scatter":
        return " <small>on every prompt</small>"
    both = bounds_apart(bounds, null, " to ")
    if kind == "range":
        return f' <small class="range">prompts {both}</small>'
    return f" <small>95%: {both}</small>"


def _speed(row: SweepRow) -> str:
    if row.speed_vs_target is None:
        return DASH
    value = f"{compared(row.speed_vs_target, row.speed_interval, 1)}x"
    if row.speed_interval_kind != "no scatter":
        value += _bounds(row.speed_interval, row.speed_interval_kind, 1)
    return value if row.tokens_per_second is None else f"{value} <small>{row.tokens_per_second:.1f} tokens/s</small>"


def _answers(row: SweepRow) -> str:
    return f"{row.answers}, {row.errors} failed" if row.errors else str(row.answers)


def categories_table(groups: Mapping[str, Sequence[SweepRow]], metric: str) -> str:
    """Quality and speed in each category, in a box that scrolls if there are many; empty if there are none."""
    if not groups:
        return ""
    rows = {(row.temperature, row.strategy, name): row for name, group in groups.items() for row in group}
    temperatures = sorted({temperature for temperature, *_ in rows})
    lines = []
    for temperature in temperatures:
        if len(temperatures) > 1:
            lines.append(_group(temperature, len(groups)))
        for strategy in dict.fromkeys(each for at, each, _ in rows if at == temperature):
            cells = (_in_category(rows.get((temperature, strategy, name))) for name in groups)
            lines.append(f"<tr>{_name(strategy)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{_category(name, group)}</th>' for name, group in groups.items())
    body = "\n".join(lines)
    return (
        f'<p class="muted">Quality ({text(metric)}) and speed over target alone for each category of prompts, each'
        " with a 95% interval where there are six or more prompts.</p>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="Categories of prompts">\n'
        f'<table>\n<thead><tr><th scope="col">strategy</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n'
        "</div>"
    )


def _category(name: str, rows: Sequence[SweepRow]) -> str:
    count = max(row.num_prompts or 0 for row in rows)
    return f"{text(name or '(no category)')}<br>{counted(count, 'prompt')}"


def _in_category(row: SweepRow | None) -> str:
    if row is None:
        return DASH
    known = row.quality_interval_kind == "95%"
    bounds = _bounds(row.quality_interval, row.quality_interval_kind) if known else ""
    speed = number(row.speed_vs_target, 2, "x")
    if row.speed_interval_kind == "95%":
        speed += _bounds(row.speed_interval, row.speed_interval_kind)
    return f"{number(row.quality)}{bounds}<br><small>{speed}</small>"
