"""Advice on the terminal: what to use, what was measured and predicted, what would change it, and how to use it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.analysis.advice import Advice, Candidate, Confirmed, format_ratio
from cascli.analysis.answer_costs import Ratio
from cascli.analysis.digits import bounds_apart, compared
from cascli.analysis.equivalents import Use
from cascli.render.columns import Column, ever_fewer
from cascli.render.console import Screen, fits, plain_table, unicode_ok
from cascli.render.explanation import noise_line, sentence, steps_line
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, counted, number, rate, tv
from cascli.settings import TARGET

NEAR = 0.9
"""Share of the best prediction from which other block lengths are listed without `-v`."""
MOST_NEAR = 4


def print_advice(advice: Advice, screen: Screen) -> None:
    """Print the finding and, unless quiet, everything that it rests on."""
    out = screen.out
    out.print(Text(_title(advice)), style="bold")
    out.print(Text(verdict(advice)), style="bold")
    if screen.quiet:
        return
    for line in advice.finding.sentences:
        out.print(Text(line))
    _part(
        out,
        f"Measured: whole answers to {counted(len(advice.confirmed_on), 'prompt')}, interleaved",
        _measured(advice, out),
    )
    if advice.explanation is not None:
        # The table's speeds are over prompts, each with its own ratio, or over answers.
        out.print(Text(f"\n{sentence(advice.explanation, by_token=True, fancy=unicode_ok(out))}"))
    _print_predictions(advice, screen)
    out.print(Text("\nWhat this is based on", style="bold"))
    for line in _basis(advice):
        out.print(Text(line))
    out.print(Text("\nHow to use it", style="bold"))
    for line in use_lines(advice.use):
        out.print(Text(line), soft_wrap=True)
    for note in filter(None, (*advice.notes, noise_line(advice.spread, repeats=False))):
        screen.note(note)


def _print_predictions(advice: Advice, screen: Screen) -> None:
    """Print the predictions for what did not run: lossless, lossy, and under changed conditions."""
    out, fancy = screen.out, unicode_ok(screen.out)
    shown = advice.candidates if screen.verbose else _shown(advice)
    _part(out, "Predicted without loss", _predicted(shown, out, fancy=fancy))
    if advice.levels:
        _part(out, "What lenience would buy: speed predicted, mean TV estimated", _levels(advice, out, fancy=fancy))
    elif advice.looked.acceptance is not None:
        out.print(Text("\nNo rule with a mean TV of up to 0.2 is predicted to beat lossless speculation."))
    if advice.levers:
        _part(out, "What would change it: plain speculation, predicted", _levers(advice, out))
        out.print(Text(_largest_gain(advice)))


def verdict(advice: Advice) -> str:
    """What to use and what it gains, in one sentence."""
    finding = advice.finding
    if finding.speed is None:
        return f"Use {TARGET} alone."
    return f"Use {finding.strategy}: {format_ratio(finding.speed)} as fast as {TARGET}, measured."


def _title(advice: Advice) -> str:
    pair, sampling = advice.pair, advice.sampling
    drawn = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    return f"{pair.name}: {pair.dtypes} on {advice.environment['device']}; {drawn}; {advice.tolerance}"


def _part(out: Console, title: str, table: Table) -> None:
    out.print(Text(f"\n{title}", style="bold"))
    out.print(table)


def _table(console: Console, headings: tuple[str, ...]) -> Table:
    table = plain_table(console)
    table.add_column(headings[0], overflow="fold", vertical="bottom")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


MEASURED: list[Column[Confirmed]] = [
    Column("measured\nspeed", lambda row: f"{compared(row.speed.of_means, row.speed.interval, 1)}x"),
    Column("interval", lambda row: DASH if row.strategy == TARGET else _interval(row.speed), expendable=1),
    Column("pre-\ndicted", lambda row: number(row.predicted, 2, "x") + ("!" if row.surprise else ""), expendable=3),
    Column("tokens\nper\nround", lambda row: number(row.tokens_per_round, 1), expendable=4),
    Column("mean\nTV", lambda row: tv(row.mean_tv), expendable=2),
    Column(
        "same\ntext",
        lambda row: DASH if row.strategy == TARGET else f"{row.same_answers}/{row.num_answers}",
        expendable=5,
    ),
]
SCORED: list[Column[Confirmed]] = [
    Column("score\nloss", lambda row: DASH if row.quality is None else number(row.quality.loss, 3)),
    Column("at\nmost", lambda row: DASH if row.quality is None else number(row.quality.most, 3)),
]
NAME = 20
"""Characters per line of a strategy's name, in a table that has to be narrow."""


def _measured(advice: Advice, console: Console) -> Table:
    """A table with as many columns as fit; names wrap before a column is dropped."""
    scored = any(row.quality is not None for row in advice.confirmed)
    columns = [*MEASURED, *(SCORED if scored else [])]
    tables = [_drawn(advice, few, console, width) for few in ever_fewer(columns) for width in (console.width, NAME)]
    return next((each for each in tables if fits(each, console)), tables[-1])


def _drawn(advice: Advice, columns: Sequence[Column[Confirmed]], console: Console, width: int) -> Table:
    table = _table(console, ("strategy", *(each.heading for each in columns)))
    fancy = unicode_ok(console)
    for row in advice.confirmed:
        mark = ("→ " if fancy else "> ") if row.strategy == advice.finding.strategy else "  "
        lines = textwrap.wrap(short_name(row.strategy, fancy=fancy), width, break_long_words=False)
        table.add_row(mark + "\n  ".join(lines), *(each.cell(row) for each in columns))
    return table


def _interval(ratio: Ratio) -> str:
    if ratio.interval is None:
        return DASH
    return bounds_apart(ratio.interval, 1, "-") + ("" if ratio.interval_kind == "95%" else " range")


def _shown(advice: Advice) -> list[Candidate]:
    """The best of each drafter and stop, and plain speculation at every k that comes close to its best."""
    plain = [each for each in advice.candidates if each.plain]
    near = [each for each in plain if plain and each.gain >= NEAR * plain[0].gain][:MOST_NEAR]
    return [each for each in advice.candidates if not each.plain or each in near]


def _predicted(candidates: list[Candidate], console: Console, *, fancy: bool) -> Table:
    table = _table(console, ("strategy", "tokens\nper\nround", "predicted\nspeed", "interval\nof prompts"))
    for candidate in candidates:
        name = short_name(candidate.strategy, fancy=fancy)
        figures = number(candidate.tokens_per_round, 2), f"{candidate.gain:.2f}x", _interval(candidate.speed)
        table.add_row(name, *figures)
    return table


def _levels(advice: Advice, console: Console, *, fancy: bool) -> Table:
    table = _table(console, ("the best rule", "mean TV\nat most", "mean TV", "speed", "drafts\nthat pass"))
    for level in advice.levels:
        candidate = level.candidate
        figures = (f"{level.max_tv:g}", tv(candidate.mean_tv), f"{candidate.gain:.2f}x", rate(candidate.acceptance))
        table.add_row(short_name(candidate.strategy, fancy=fancy), *figures)
    return table


def _levers(advice: Advice, console: Console) -> Table:
    table = _table(console, ("change", "best k", "speed"))
    for lever in advice.levers:
        table.add_row(lever.change, DASH if lever.k is None else str(lever.k), f"{lever.gain:.2f}x")
    return table


def _largest_gain(advice: Advice) -> str:
    """The change that would help most, in a sentence."""
    best = max(advice.levers, key=lambda each: each.gain)
    return f"The largest gain would come from: {best.change}, {best.gain:.2f}x instead of {advice.levers[0].gain:.2f}x."


def _basis(advice: Advice) -> Iterator[str]:
    """What was recorded and timed, in sentences."""
    looked, machine = advice.looked, advice.machine
    others = "not the measured ones" if advice.apart else "the same as measured"
    cut = f"{looked.share_cut:.0%} of answers cut"
    yield f"Recorded: {counted(len(looked.prompts), 'prompt')}, {others}; {counted(looked.tokens, 'token')}, {cut}."
    if looked.acceptance is not None:
        thirds = ", ".join(rate(each) for each in looked.acceptance_by_third)
        rows = (
            "" if looked.passing_rows is None else f"; {looked.passing_rows:.2f} times that after a draft that passed"
        )
        each = f" (by thirds of the answer {thirds})" if len(looked.acceptance_by_third) == 3 else ""
        yield f"A draft passes with probability {rate(looked.acceptance)}{each}{rows}."
        outside = f"time outside the models: {machine.outside:.2f} steps per round"
        if machine.outside_drafted is not None:
            outside += f" of {machine.outside_drafted:.1f} drafts, {machine.outside_alone:.2f} for target alone"
        yield f"c = {machine.c:.2f}: a draft step over a target step; {outside}."
    yield f"Measured {steps_line(advice.profile)}."
    yield "For one text at a time: checks cost more in batches (cascli bench --batch 1,4,16 shows where it pays)."


def use_lines(use: Use) -> Iterator[str]:
    """Everything to copy."""
    yield f"  {use.command}"
    yield "in the pair's file:"
    yield from _indented(use.yaml)
    yield from _elsewhere("vLLM", use.vllm, use.vllm_note)
    yield from _elsewhere("transformers", use.transformers, use.transformers_note)


def _elsewhere(name: str, code: str | None, note: str | None) -> Iterator[str]:
    if code is None:
        yield f"{name}: no equivalent: {note}"
        return
    yield f"{name}:" if note is None else f"{name} ({note}):"
    yield from _indented(code)


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"  {line}"
