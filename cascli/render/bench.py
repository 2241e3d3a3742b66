"""A pair's speed profile on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.analysis.bench import Bench, SyntheticRuns
from cascli.analysis.explanation import Explanation
from cascli.analysis.profile import Profile
from cascli.analysis.prospects import Prospect, prospects
from cascli.render.batches import print_batches
from cascli.render.console import Screen, plain_table
from cascli.render.early_exit import print_exits
from cascli.render.explanation import NOISY
from cascli.render.numbers import number, seconds, size

ROOMY = 110
"""Columns that a table of all usual blocks takes."""
NARROW = (1, 2, 3, 5, 9, 17, 33)
"""Blocks that are shown where there are fewer."""


def print_bench(bench: Bench, screen: Screen) -> None:
    """The tables, and what they say."""
    out = screen.out
    out.print(Text(_title(bench), style="bold"))
    out.print(_steps(bench, out))
    if screen.quiet:
        return
    for line in _lines(bench):
        out.print(Text(line))
    out.print()
    out.print(_prospects(bench.profiles[0], out))
    if bench.synthetic is not None:
        out.print(Text(f"\n{synthetic_title(bench.synthetic)}", style="bold"))
        out.print(_synthetic(bench.synthetic, out))
    if bench.early_exit is not None:
        print_exits(bench.early_exit, out)
    if bench.batches:
        print_batches(bench, screen)
    noisy = max(profile.spread for profile in (*bench.profiles, *bench.batches))
    if noisy >= NOISY:
        screen.note(f"noisy machine: timings of one kind spread by {noisy:.0%}; repeat with nothing else running")


def _title(bench: Bench) -> str:
    pair = bench.pair
    return f"{pair.name}: {pair.dtypes} on {bench.environment['device']}"


def synthetic_title(runs: SyntheticRuns) -> str:
    """What these numbers are, said before them."""
    return f"SYNTHETIC acceptance {runs.acceptance}: speed only, over {runs.tokens} tokens whose text means nothing"


def _steps(bench: Bench, console: Console) -> Table:
    blocks = sorted(bench.profiles[0].target)
    if console.width < ROOMY:
        blocks = [n for n in blocks if n in NARROW] or blocks
    table = plain_table(console)
    models = list(bench.pair.models)
    for heading in ("context", *(f"{role}\nstep" for role in models), *(["c"] if "draft" in models else [])):
        table.add_column(heading, justify="right", no_wrap=True, vertical="top")
    for n in blocks[1:]:
        table.add_column(f"v of\n{n}", justify="right", no_wrap=True, vertical="top")
    for profile in bench.profiles:
        table.add_row(
            str(profile.context),
            *(seconds(getattr(profile, role)[1].median) for role in models),
            *([number(profile.c)] if "draft" in models else []),
            *(number(profile.v(n)) for n in blocks[1:]),
        )
    return table


def _lines(bench: Bench) -> Iterator[str]:
    c = "c: a draft step over a target step. " if bench.pair.draft is not None else ""
    yield f"{c}v of n: a target call over n tokens, over a target step."
    copy = f"a copy in memory moves {size(bench.copy_bytes_per_second)}/s"
    first = bench.profiles[0]
    shares = [f"{number(bench.bandwidth_share(role, first))} ({role})" for role in ("draft", "target")]
    if bench.pair.draft is None:
        yield f"{copy}; reading weights in steps reaches {shares[1]} of that."
        return
    read = f"reading weights in steps reaches {' and '.join(shares)} of that"
    yield f"{copy}; {read}; the ratio of their bytes is {number(bench.ratio_of_bytes)}."


def _prospects(profile: Profile, console: Console) -> Table:
    table = plain_table(console)
    rows = prospects(profile)
    table.add_column(f"acceptance (theory, after {profile.context} tokens)", no_wrap=True)
    for prospect in rows:
        table.add_column(number(prospect.acceptance, 1), justify="right")
    table.add_row("best k", *(_best(prospect) for prospect in rows))
    table.add_row("speed-up over target", *(number(prospect.speed_up, 2, "x") for prospect in rows))
    return table


def _best(prospect: Prospect) -> str:
    if prospect.best_k is None:
        return "none"
    return f"{prospect.best_k}{' or more' if prospect.or_more else ''}"


def _synthetic(runs: SyntheticRuns, console: Console) -> Table:
    table = plain_table(console)
    headings = ("k", "tokens\na round", "draft step\nc", "check\nv", "predicted\nspeed-up", "measured\n(synthetic)")
    for heading in (*headings, "measured /\npredicted", "outside\nmodels"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="top")
    for each in runs.accounts:
        table.add_row(*_account(each))
    return table


def _account(each: Explanation) -> tuple[str, ...]:
    return (
        str(each.k),
        number(each.tokens_per_round),
        number(each.c),
        number(each.v),
        number(each.predicted_speed_up, 2, "x"),
        number(each.measured_speed_up, 2, "x"),
        number(each.measured_over_predicted),
        number(each.overhead),
    )
