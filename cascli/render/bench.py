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
from cascli.render.console import Screen, number_tables, stacked
from cascli.render.early_exit import print_exits
from cascli.render.explanation import NOISY
from cascli.render.numbers import number, seconds, size

ROOMY = 110
"""Width in columns of a table with all usual blocks."""
NARROW = (1, 2, 3, 5, 9, 17, 33)
"""Blocks shown on a narrower terminal."""


def print_bench(bench: Bench, screen: Screen) -> None:
    """Print the tables and what follows from them."""
    out = screen.out
    out.print(Text(_title(bench), style="bold"))
    out.print(stacked(_steps(bench, out)))
    if screen.quiet:
        return
    for line in _lines(bench):
        out.print(Text(line))
    out.print()
    out.print(stacked(_prospects(bench.profiles[0], out)))
    if bench.synthetic is not None:
        out.print(Text(f"\n{synthetic_title(bench.synthetic)}", style="bold"))
        out.print(stacked(_synthetic(bench.synthetic, out)))
    if bench.early_exit is not None:
        print_exits(bench.early_exit, out)
    if bench.batches:
        print_batches(bench, screen)
    noisy = max(profile.spread for profile in (*bench.profiles, *bench.batches))
    if noisy >= NOISY:
        screen.note(f"noisy machine: timings of the same kind spread by {noisy:.0%}; repeat with nothing else running")


def _title(bench: Bench) -> str:
    pair = bench.pair
    return f"{pair.name}: {pair.dtypes} on {bench.environment['device']}"


def synthetic_title(runs: SyntheticRuns) -> str:
    """The heading that marks these numbers as synthetic."""
    return f"SYNTHETIC acceptance {runs.acceptance}: speed only, over {runs.tokens} tokens of meaningless text"


def _steps(bench: Bench, console: Console) -> list[Table]:
    blocks = sorted(bench.profiles[0].target)
    if console.width < ROOMY:
        blocks = [n for n in blocks if n in NARROW] or blocks
    models, profiles = list(bench.pair.models), bench.profiles
    steps = [(f"{role}\nstep", [seconds(getattr(each, role)[1].median) for each in profiles]) for role in models]
    costs = [("c", [number(each.c) for each in profiles])] if "draft" in models else []
    checks = [(f"v of\n{n}", [number(each.v(n)) for each in profiles]) for n in blocks[1:]]
    return number_tables("context", [str(each.context) for each in profiles], [*steps, *costs, *checks], console)


def _lines(bench: Bench) -> Iterator[str]:
    c = "c: a draft step over a target step. " if bench.pair.draft is not None else ""
    yield f"{c}v of n: a target call over n tokens, over a target step."
    copy = f"a memory copy moves {size(bench.copy_bytes_per_second)}/s"
    first = bench.profiles[0]
    shares = [f"{number(bench.bandwidth_share(role, first))} ({role})" for role in ("draft", "target")]
    if bench.pair.draft is None:
        yield f"{copy}; reading weights in steps reaches {shares[1]} of that."
        return
    read = f"reading weights in steps reaches {' and '.join(shares)} of that"
    yield f"{copy}; {read}; the ratio of their bytes is {number(bench.ratio_of_bytes)}."


def _prospects(profile: Profile, console: Console) -> list[Table]:
    columns = [
        (number(each.acceptance, 1), [_best(each), number(each.speed_up, 2, "x")]) for each in prospects(profile)
    ]
    heading = f"acceptance (theory, after {profile.context} tokens)"
    return number_tables(heading, ["best k", "speed-up over target"], columns, console, justify="left")


def _best(prospect: Prospect) -> str:
    if prospect.best_k is None:
        return "none"
    return f"{prospect.best_k}{' or more' if prospect.or_more else ''}"


def _synthetic(runs: SyntheticRuns, console: Console) -> list[Table]:
    headings = ("tokens\nper\nround", "draft step\nc", "check\nv", "predicted\nspeed-up", "measured\n(synthetic)")
    rows = [_account(each) for each in runs.accounts]
    columns = [
        (heading, [row[place] for row in rows])
        for place, heading in enumerate((*headings, "measured /\npredicted", "outside\nmodels"))
    ]
    return number_tables("k", [str(each.k) for each in runs.accounts], columns, console)


def _account(account: Explanation) -> tuple[str, ...]:
    return (
        number(account.tokens_per_round),
        number(account.c),
        number(account.v),
        number(account.predicted_speed_up, 2, "x"),
        number(account.measured_speed_up, 2, "x"),
        number(account.measured_over_predicted),
        number(account.overhead),
    )
