"""Results in a notebook: HTML with inline styles, for light and dark backgrounds, with all text escaped."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from html import escape

from rich.color import ColorType
from rich.console import Console
from rich.style import Style
from rich.text import Text

from cascli.analysis.comparison import Comparison, Row
from cascli.errors import plain
from cascli.render.answers import AnswerCell, legend_of
from cascli.render.comparison import TRACES_SHOWN, by_prompt, cells_of, notes, prompt_line, remarks
from cascli.render.marks import ending, short_name
from cascli.render.numbers import DASH, number, seconds, tv, yes_no
from cascli.render.stream import describe_handover
from cascli.render.sweep import COST, QUALITY, with_values
from cascli.render.sweep_words import caution, differences, scatter_kinds, unfinished
from cascli.render.table import page_columns
from cascli.render.verdict import verdict
from cascli.sweeps.table import SweepRow, SweepRows
from cascli.trace import Run

MOST_ROWS = 60
"""Rows shown of a table; a sweep has hundreds."""
QUIET = "opacity:.7"
# Every background is the notebook's: it may be light or dark, and its own styles would shade every second row.
CELL = "padding:.15em .7em;background:transparent;border:0;white-space:nowrap"
RULE = "border-bottom:1px solid rgba(128,128,128,.5)"
ANSWER = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;max-width:60em"


def html_of(result: object) -> str | None:
    """The HTML of a run, a comparison, a sweep, or a row of one; None for what reads better as text."""
    for kind, render in RENDERERS.items():
        if isinstance(result, kind):
            return f'<div style="color:inherit">{render(result)}</div>'
    return None


def _console() -> Console:
    """A terminal that can show everything: a notebook shows what a terminal would, in HTML."""
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False, width=100)


def of_run(run: Run) -> str:
    """The answer in the colours of its tokens' origins, what they mean, and the run's numbers."""
    console, name = _console(), short_name(run.spec, oracle=run.oracle)
    cell = AnswerCell.of(run, name)
    parts = [_block(text_html(cell.text(console), console), ANSWER)]
    if run.handover is not None:
        parts.append(_block(_text(describe_handover(run.handover)), QUIET))
    parts.append(_block(text_html(legend_of([cell], console), console), "font-size:85%;margin:.4em 0"))
    m = run.metrics
    headings = ["strategy", "tokens", "ended by", "time", "tok/s", "accepted", "target calls", "mean TV", "lossless"]
    accepted = f"{m.num_accepted_draft_tokens}/{m.num_draft_tokens}" if m.num_draft_tokens else DASH
    parts.append(
        table_html(
            headings,
            [
                [
                    name, str(len(run.token_ids)), ending(run.finish_reason), seconds(m.seconds.total),
                    number(m.tokens_per_second, 1), accepted, number(m.target_calls_per_token),
                    tv(m.mean_tv_to_target), yes_no(m.lossless),
                ]
            ],
        )
    )  # fmt: skip
    return "".join(parts)


def of_comparison(comparison: Comparison) -> str:
    """What `cascli compare` prints: the verdict, the table, the answers of the first prompts, and the explanation."""
    groups, rows, console = list(by_prompt(comparison.runs)), comparison.summary, _console()
    parts = []
    if groups:
        parts.append(_block(_text(prompt_line(groups)), ""))
    outcome = verdict(rows)
    parts += [_block(_text(outcome), "font-weight:bold")] if outcome else []
    parts.append(of_rows(rows))
    parts += [_block(_text(line), QUIET) for line in remarks(comparison)]
    all_cells: list[AnswerCell] = []
    for group in groups[: TRACES_SHOWN if len(groups) <= TRACES_SHOWN else 1]:
        if len(groups) > 1:
            parts.append(_block(_text(prompt_line([group])), "margin-top:1em;font-weight:bold"))
        cells = cells_of(group, rows, fancy=True)
        parts += [_answer(cell, console) for cell in cells]
        all_cells += cells
    parts.append(_block(text_html(legend_of(all_cells, console), console), "font-size:85%;margin:.4em 0"))
    parts += [_block(_text(line), "margin-top:.5em") for line in notes(comparison)]
    return "".join(parts)


def of_rows(rows: Sequence[Row]) -> str:
    """Strategies of a comparison as a table."""
    columns = page_columns(rows)
    return table_html(
        ["strategy", *(column.heading for column in columns)],
        [[short_name(row.strategy, oracle=row.oracle), *(column.cell(row) for column in columns)] for row in rows],
    )


def of_sweep(rows: Sequence[SweepRow]) -> str:
    """A sweep's rows as a table: quality and cost."""
    columns = with_values([*QUALITY, *COST], rows)
    headings = [column.heading.format(metric="quality") for column in columns]
    shown = [
        [short_name(row.strategy), f"{row.temperature:g}", *(column.cell(row) for column in columns)]
        for row in rows[:MOST_ROWS]
    ]
    more = len(rows) - len(shown)
    notes = [f"and {more} more rows" if more else "", "; ".join(scatter_kinds(rows)), caution(rows) or ""]
    header = getattr(rows, "header", None)
    notes += [differences(header) or "", unfinished(header) or ""]
    footer = "".join(_block(_text(note), QUIET) for note in notes if note)
    return table_html(["strategy", "T", *headings], shown) + footer


RENDERERS: dict[type, Callable[..., str]] = {
    Run: of_run,
    Comparison: of_comparison,
    Row: lambda row: of_rows([row]),
    SweepRows: of_sweep,
    SweepRow: lambda row: of_sweep([row]),
}


def _answer(cell: AnswerCell, console: Console) -> str:
    note = f' <span style="{QUIET}">{_text(cell.note)}</span>' if cell.note else ""
    head = _block(f"<b>{_text(cell.name)}</b>{note}", "margin-top:.6em")
    return head + _block(text_html(cell.text(console), console), ANSWER)


def table_html(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column left-aligned, numbers right-aligned."""
    head = "".join(
        f'<th style="{CELL};{RULE};text-align:{_side(place)};vertical-align:bottom">{_lines(heading)}</th>'
        for place, heading in enumerate(headings)
    )
    body = "".join(
        f'<tr style="background:transparent">{"".join(_cell(place, value) for place, value in enumerate(row))}</tr>'
        for row in rows
    )
    style = "border-collapse:collapse;font-size:90%;font-variant-numeric:tabular-nums;color:inherit;margin:.5em 0"
    table = f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x:auto">{table}</div>'


def _cell(place: int, value: str) -> str:
    weight = ";font-weight:bold" if place == 0 else ""
    return f'<td style="{CELL};text-align:{_side(place)}{weight}">{_lines(value)}</td>'


def _side(place: int) -> str:
    return "right" if place else "left"


def _block(html: str, style: str) -> str:
    return f'<div style="{style}">{html}</div>' if html else ""


def _text(text: str) -> str:
    """Escape text: no markup of its own, and no control characters that would affect its surroundings."""
    return escape(plain(text))


def _lines(text: str) -> str:
    return "<br>".join(_text(line) for line in text.splitlines())


def text_html(text: Text, console: Console) -> str:
    """Styled text as HTML, with one span for each stretch of equal style."""
    parts = []
    for segment in text.render(console):
        css = _css(segment.style)
        parts.append(f'<span style="{css}">{_text(segment.text)}</span>' if css else _text(segment.text))
    return "".join(parts)


def _css(style: Style | None) -> str:
    if style is None:
        return ""
    rules = []
    if style.color is not None and style.color.type != ColorType.DEFAULT:
        rules.append(f"color:{style.color.get_truecolor().hex}")
    lines = [name for name, on in (("underline", style.underline), ("line-through", style.strike)) if on]
    rules += [f"text-decoration:{' '.join(lines)}"] if lines else []
    rules += ["font-weight:bold"] if style.bold else []
    rules += [QUIET] if style.dim else []
    return ";".join(rules)
