"""What speculation is worth in batches, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.analysis import theory
from cascli.analysis.bench import Bench
from cascli.analysis.profile import Profile
from cascli.analysis.prospects import ACCEPTANCES, Prospect, break_even, prospects
from cascli.render.console import Screen, plain_table
from cascli.render.numbers import number, seconds, size

SHOWN_KS = (1, 2, 4, 8)
SHOWN_ACCEPTANCE = 0.8


def print_batches(bench: Bench, screen: Screen) -> None:
    """The passes of each batch size, what they predict, and what was measured."""
    out, batches = screen.out, bench.batches
    out.print(Text(f"\nBatches, after {batches[0].context} tokens: throughput, not the latency of an answer", "bold"))
    out.print(_passes(batches, out))
    out.print(Text("c, v: as above, of passes that read so many tokens of every answer."))
    if bench.pair.draft is not None:
        acceptance = bench.synthetic.acceptance if bench.synthetic else SHOWN_ACCEPTANCE
        out.print()
        out.print(_by_k(batches, acceptance, out))
        out.print()
        out.print(_best(batches, out))
        for line in _lines(batches):
            out.print(Text(line))
    if bench.batch_runs:
        out.print()
        out.print(_measured(bench, out))
    if bench.batch_memory is not None:
        memory = bench.batch_memory
        measured = "" if memory.measured_bytes is None else f", {size(memory.measured_bytes)} measured"
        texts = f"{memory.batch_size} texts of {memory.tokens} tokens"
        out.print(Text(f"memory with {texts}: {size(memory.predicted_bytes)} predicted{measured}."))


def shown_ks(batches: list[Profile]) -> list[int]:
    """Block lengths that were timed, of those in a table."""
    return [k for k in SHOWN_KS if k < batches[0].longest]


def _passes(batches: list[Profile], console: Console) -> Table:
    table = plain_table(console)
    ks = shown_ks(batches)
    drafts = bool(batches[0].draft)
    headings = ("batch", "target\npass", "tokens/s\n(target)", *(("draft\npass", "c") if drafts else ()))
    for heading in (*headings, *(f"v of\n{k + 1}" for k in ks)):
        table.add_column(heading, justify="right", no_wrap=True, vertical="top")
    for each in batches:
        step = each.target[1].median
        draft = (seconds(each.draft[1].median), number(each.c)) if drafts else ()
        rate = number(each.batch_size / step, 1)
        table.add_row(str(each.batch_size), seconds(step), rate, *draft, *(number(each.v(k + 1)) for k in ks))
    return table


def _by_k(batches: list[Profile], acceptance: float, console: Console) -> Table:
    table = plain_table(console)
    table.add_column(f"predicted at acceptance {number(acceptance)}", no_wrap=True)
    for each in batches:
        table.add_column(f"batch\n{each.batch_size}", justify="right", no_wrap=True, vertical="top")
    for k in shown_ks(batches):
        gains = (theory.speed_up(acceptance, k, each.c, each.v(k + 1)) for each in batches)
        table.add_row(f"speed-up with k={k}", *(number(gain, 2, "x") for gain in gains))
    return table


def _best(batches: list[Profile], console: Console) -> Table:
    table = plain_table(console)
    table.add_column("best k: speed-up (theory)\nat an acceptance of", no_wrap=True)
    for acceptance in ACCEPTANCES:
        table.add_column(f"\n{number(acceptance, 1)}", justify="right", no_wrap=True, vertical="top")
    for each in batches:
        table.add_row(f"batch {each.batch_size}", *(_cell(prospect) for prospect in prospects(each)))
    return table


def _cell(prospect: Prospect) -> str:
    if prospect.best_k is None:
        return "none"
    return f"{prospect.best_k}{'+' if prospect.or_more else ''}: {number(prospect.speed_up, 2, 'x')}"


def _lines(batches: list[Profile]) -> Iterator[str]:
    pays = [
        f"{number(each.acceptance, 1)}: {'none' if each.largest is None else each.largest}"
        + (" or more" if each.or_more else "")
        for each in break_even(batches)
    ]
    yield f"largest batch at which speculation pays, by acceptance: {'; '.join(pays)}."


def _measured(bench: Bench, console: Console) -> Table:
    table = plain_table(console)
    table.add_column("SYNTHETIC acceptance", no_wrap=True, vertical="top")
    for heading in (
        "batch",
        "tokens/s\nmeasured",
        "tokens/s\npredicted",
        "measured /\npredicted",
        "over target\nmeasured",
    ):
        table.add_column(heading, justify="right", no_wrap=True, vertical="top")
    alone = {run.batch_size: run.tokens_per_second for run in bench.batch_runs if run.k == 0}
    for run in bench.batch_runs:
        table.add_row(
            f"k={run.k}" if run.k else "target",
            str(run.batch_size),
            number(run.tokens_per_second, 1),
            number(run.predicted_tokens_per_second, 1),
            number(run.measured_over_predicted),
            number(run.tokens_per_second / alone[run.batch_size], 2, "x"),
        )
    return table
