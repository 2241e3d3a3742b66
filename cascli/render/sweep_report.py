"""One self-contained HTML page: summary, picture, table, answers that differ, the environment and the exact command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from cascli.render.html_text import section, text
from cascli.render.matching import budget_lines, calls_of_sweep
from cascli.render.sweep_report_samples import samples_of
from cascli.render.sweep_report_tables import categories_table, strategies_table
from cascli.render.sweep_words import (
    batches,
    caution,
    day_of,
    differences,
    findings,
    pair_of,
    summary,
    title_of,
    unfinished,
)
from cascli.sweeps.records import Header, Record
from cascli.sweeps.samples import samples
from cascli.sweeps.table import SweepRow, by_category, in_order

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def report(header: Header, rows: Sequence[SweepRow], svg: str | None, records: Sequence[Record] = ()) -> str:
    """The page.

    Args:
        header: what the sweep was made from.
        rows: its table.
        svg: the picture, if one could be drawn.
        records: the answers, for categories and samples, in any order.
    """
    records = in_order(records, header)
    title = text(title_of(header))
    style = files("cascli.render").joinpath("sweep_report.css").read_text(encoding="utf-8")
    kicker = " · ".join(part for part in ("cascli sweep", day_of(header)) if part)
    parts = [
        _picture(svg),
        section("Strategies", strategies_table(rows, header.metric)),
        section("Categories of prompts", categories_table(by_category(records, header.full_plan()), header.metric)),
        section("Answers that differ", samples_of(samples(records), header)),
        section("How it was made", _provenance(header)),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kicker">{text(kicker)}</p>
<h1>{title}</h1>
<p class="lead">{text(summary(header, rows))}</p>
{_finding_paragraphs(rows, header)}
</header>
<main>
{"".join(parts)}</main>
</body>
</html>
"""


def _finding_paragraphs(rows: Sequence[SweepRow], header: Header) -> str:
    """What follows from the table, and warnings about what does not."""
    notes = (*batches(rows), *budget_lines(header.budgets, calls_of_sweep(rows)))
    sentences = (
        *findings(rows, header),
        *(f"{each[:1].upper()}{each[1:]}." for each in notes),
        caution(rows),
        differences(header),
        unfinished(header),
    )
    return "\n".join(f"<p>{text(sentence)}</p>" for sentence in sentences if sentence is not None)


def _picture(svg: str | None) -> str:
    if svg is None:
        return '<p class="muted">No plot: matplotlib was not installed.</p>\n'
    drawing = svg[svg.index("<svg") :].replace("<svg", '<svg role="img" aria-label="Quality against cost"', 1)
    return f'<figure class="scroll" tabindex="0" aria-label="Quality against cost">\n{drawing}</figure>\n'


def _provenance(header: Header) -> str:
    """The exact command, the environment and the sweep file."""
    facts = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in _facts(header))
    named = {"pair": pair_of(header)} if isinstance(header.plan.pair, str) else {}
    plan = header.plan.model_copy(update=named).model_dump_json(indent=2)
    commands = _commands(header) or "(the command was not recorded)"
    return (
        f'<pre class="made">{text(commands)}</pre>\n<dl>{facts}</dl>\n'
        f'<details><summary>The whole sweep file</summary>\n<pre class="made">{text(plan)}</pre>\n</details>'
    )


def _commands(header: Header) -> str:
    """The command; if several calls made the answers, each one's with its date and version."""
    if len(header.calls) < 2:
        return header.command
    return "\n".join(f"# {call.date or 'not dated'}, cascli {call.version}\n{call.command}" for call in header.calls)


def _facts(header: Header) -> Iterator[tuple[str, str]]:
    """How the page's data was made; models in folders appear by the folder's own name."""
    known: Mapping[str, str] = {
        "date": header.date or "not recorded",
        "pair": pair_of(header),
        "cascli": header.version,
        **header.shared_environment,
        **{name: ", then ".join(each) for name, each in header.differing.items()},
    }
    for key, value in known.items():
        if value:
            yield key, f"path:{Path(value).name}" if value.startswith("path:") else value
