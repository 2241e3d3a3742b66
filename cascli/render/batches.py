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
from cascli.render.console import Screen, number_tables, stacked
from cascli.render.numbers import number, seconds, size

SHOWN_KS = (1, 2, 4, 8)
SHOWN_ACCEPTANCE = 0.8


def print_batches(bench: Bench, screen: Screen) -> None:
    """Print the passes of each batch size, what they predict, and what was measured."""
    out, batches = screen.out, bench.batches
    out.print(Text(f"\nBatches, after {batches[0].context} tokens: throughput, not the latency of an answer", "bold"))
    out.print(stacked(_passes(batches, out)))
    out.print(Text("c, v: as above, for passes that read that many tokens of every answer."))
    if bench.pair.draft is not None:
        acceptance = bench.synthetic.acceptance if bench.synthetic else SHOWN_ACCEPTANCE
        out.print()
        out.print(stacked(_by_k(batches, acceptance, out)))
        out.print()
        out.print(stacked(_best(batches, out)))
        for line in _lines(batches):
            out.print(Text(line))
    if bench.batch_runs:
        out.print()
        out.print(stacked(_measured(bench, out)))
    if bench.batch_memory is not None:
        memory = bench.batch_memory
        measured = "" if memory.measured_bytes is None else f", {size(memory.measured_bytes)} measured"
        texts = f"{memory.batch_size} texts of {memory.tokens} tokens"
        out.print(Text(f"memory with {texts}: {size(memory.predicted_bytes)} predicted{measured}."))


def shown_ks(batches: list[Profile]) -> list[int]:
    """The block lengths of a table that were timed."""
    return [k for k in SHOWN_KS if k < batches[0].longest]


def _passes(batches: list[Profile], console: Console) -> list[Table]:
    columns = [
        ("target\npass", [seconds(each.target[1].median) for each in batches]),
        ("tokens/s\n(target)", [number(each.batch_size / each.target[1].median, 1) for each in batches]),
    ]
    if batches[0].draft:
        columns.append(("draft\npass", [seconds(each.draft[1].median) for each in batches]))
        columns.append(("c", [number(each.c) for each in batches]))
    columns += [(f"v of\n{k + 1}", [number(each.v(k + 1)) for each in batches]) for k in shown_ks(batches)]
    return number_tables("batch", [str(each.batch_size) for each in batches], columns, console)


def _by_k(batches: list[Profile], acceptance: float, console: Console) -> list[Table]:
    ks = shown_ks(batches)
    columns = [
        (
            f"batch\n{each.batch_size}",
            [number(theory.speed_up(acceptance, k, each.c, each.v(k + 1)), 2, "x") for k in ks],
        )
        for each in batches
    ]
    heading = f"predicted at acceptance {number(acceptance)}"
    return number_tables(heading, [f"speed-up with k={k}" for k in ks], columns, console, justify="left")


def _best(batches: list[Profile], console: Console) -> list[Table]:
    by_batch = [prospects(each) for each in batches]
    columns = [
        (f"\n{number(acceptance, 1)}", [_cell(each[place]) for each in by_batch])
        for place, acceptance in enumerate(ACCEPTANCES)
    ]
    heading, names = "best k: speed-up (theory)\nat an acceptance of", [f"batch {each.batch_size}" for each in batches]
    return number_tables(heading, names, columns, console, justify="left")


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


def _measured(bench: Bench, console: Console) -> list[Table]:
    runs = bench.batch_runs
    alone = {run.batch_size: run.tokens_per_second for run in runs if run.k == 0}
    columns = [
        ("tokens/s\nmeasured", [number(run.tokens_per_second, 1) for run in runs]),
        ("tokens/s\npredicted", [number(run.predicted_tokens_per_second, 1) for run in runs]),
        ("measured /\npredicted", [number(run.measured_over_predicted) for run in runs]),
        ("over target\nmeasured", [number(run.tokens_per_second / alone[run.batch_size], 2, "x") for run in runs]),
    ]
    names = [f"{f'k={run.k}' if run.k else 'target'}, batch {run.batch_size}" for run in runs]
    return number_tables("SYNTHETIC acceptance", names, columns, console, justify="left")
