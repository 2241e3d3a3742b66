"""A whole comparison on the terminal: one page with verdict, table and answers, and what explains their times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.text import Text

from cascli.analysis.comparison import Comparison, Row
from cascli.errors import plain
from cascli.render import answers
from cascli.render.answer_costs import cost_tables, cost_verdict, prompts_table, table_notes
from cascli.render.answers import AnswerCell
from cascli.render.categories import category_table
from cascli.render.console import WIDEST, Screen, unicode_ok
from cascli.render.explanation import length_line, noise_line, sentence, steps_line
from cascli.render.marks import short_name
from cascli.render.matching import calls_of, matching_line, matching_table
from cascli.render.numbers import number
from cascli.render.summary import exit_line
from cascli.render.table import page_table, scatter_line, tables
from cascli.render.trace import divergence, side_by_side, target_of
from cascli.render.verdict import verdict
from cascli.trace import PairInfo, Run, prompts_of

TRACES_SHOWN = 3
Trace = Literal["text", "tokens", "none"]
"""Whether answers are shown as running text, with one line per token, or not at all."""


def print_comparison(
    comparison: Comparison, screen: Screen, trace: Trace = "text", *, by_category: bool = False, saved: bool = False
) -> None:
    """Print verdict, table and answers, and what explains their times."""
    print_results(comparison, screen, trace, by_category=by_category, saved=saved)
    print_explanation(comparison, screen)


def print_results(
    comparison: Comparison, screen: Screen, trace: Trace = "text", *, by_category: bool = False, saved: bool = False
) -> None:
    """Print what is known when the last answer is done: the verdict, the table, and the answers to the first prompts.

    `trace` shows the answers as text, token by token, or not at all. `by_category` adds a table of every prompt
    category, and -v every figure. `saved` means that a file holds every answer, or will.
    """
    out, rows, groups = screen.out, comparison.summary, list(by_prompt(comparison.runs))
    outcome = verdict(rows, fancy=unicode_ok(out))
    with_costs = (rows[0].num_prompts or 1) > 1 or screen.verbose  # costs of answers to a single prompt only with -v
    if not screen.quiet:
        _print(out, Text(prompt_line(groups)))
        for sentence_ in (outcome, cost_verdict(rows, fancy=unicode_ok(out)) if with_costs else None):
            if sentence_ is not None:
                _print(out, Text(sentence_, style="bold"))
    _print(out, page_table(rows, out))
    greedy = comparison.runs[0].sampling.temperature == 0
    costs = cost_tables(rows, out, greedy=greedy) if with_costs else []
    for table in costs:
        _print(out, Group("", table))
    in_categories = [row for each in comparison.categories.values() for row in each] if by_category else []
    if in_categories:
        _print(out, Group("", category_table(comparison.categories, out)))
    if screen.verbose:
        _print_all_figures(comparison, out)
    if screen.quiet:
        return
    notes_of_costs = table_notes(rows, greedy=greedy) if costs else None
    lines = [*remarks(comparison, in_categories), *([notes_of_costs] if notes_of_costs else [])]
    _print(out, Text("\n".join(lines), style="dim"))
    if trace != "none":
        _print_groups(groups, rows, screen, trace, saved=saved)


def _print_all_figures(comparison: Comparison, out: Console) -> None:
    """Print how prompts vary, how settings were found, and a table of everything else."""
    rows = comparison.summary
    over_prompts = prompts_table(rows, out) if (rows[0].num_prompts or 1) > 1 else None
    if over_prompts is not None:
        _print(out, Group("", over_prompts))
    if comparison.matching is not None:
        out.print(Group("", matching_table(comparison.matching.matched, calls_of(comparison))))
    for table in tables(rows, out):
        out.print(Group("", table))


def remarks(comparison: Comparison, in_categories: Sequence[Row] = (), *, with_pair: bool = True) -> list[str]:
    """What qualifies the numbers of a comparison, in lines that stand below its table wherever it is shown.

    Args:
        comparison: what was compared.
        in_categories: rows that are shown besides its own.
        with_pair: whether the pair is one of the lines; not where it has a place of its own.
    """
    runs, rows = comparison.runs, comparison.summary
    if not runs:
        return []
    lines = [
        ended_early_line(runs),
        matching_line(comparison),
        pair_line(runs[0]) if with_pair else None,
        limits_line(runs[0].pair, rows),
        scatter_line([*rows, *in_categories]),
        _by_rounds(rows),
        _by_order(runs),
        *_exits(rows, runs[0].batch_size),
    ]
    return [line for line in lines if line]


def _by_rounds(rows: Sequence[Row]) -> str | None:
    """Strategies whose output distribution depends on the rounds, not on the text alone; lossless ones never do."""
    named = [short_name(row.strategy, fancy=False) for row in rows if row.depends_on_rounds and not row.lossless]
    return f"law depends on the rounds: {', '.join(named)}" if named else None


def _by_order(runs: Sequence[Run]) -> str | None:
    """The strategies that drafted from earlier answers."""
    remember = dict.fromkeys(run.spec for run in runs if run.earlier_texts is not None)
    named = [short_name(spec, fancy=False) for spec in remember]
    note = "also drafts from earlier answers, so the order of the prompts matters"
    return f"{note}: {', '.join(named)}" if named else None


def _exits(rows: Sequence[Row], batch_size: int) -> Iterator[str]:
    """What to know about drafts from the target's own first layers, once for each exit."""
    exits = {row.exit.layers: row.exit for row in rows if row.exit is not None}
    yield from (exit_line(exit, batch_size) for exit in exits.values())


def _print_groups(groups: list[list[Run]], rows: Sequence[Row], screen: Screen, trace: Trace, *, saved: bool) -> None:
    """Print the answers to the first prompts, or with -v to all."""
    out = screen.out
    shown = groups if len(groups) <= TRACES_SHOWN or screen.verbose else groups[:1]
    for group in shown:
        out.print()
        if len(groups) > 1:
            _print(out, Text(f"prompt: {_short(group[0].prompt)}", style="bold"))
        _print_answers(group, rows, out, trace)
    if trace == "text":
        cells = [cell for group in shown for cell in cells_of(group, rows, fancy=unicode_ok(out))]
        _print(out, Text(""))
        _print(out, answers.legend_of(cells, out))
    if len(shown) < len(groups):
        how = "-v shows all" + ("" if saved else ", -o FILE.json saves them")
        screen.note(f"the answers to {len(groups) - len(shown)} more turns are not shown; {how}")


def _print_answers(group: list[Run], rows: Sequence[Row], out: Console, trace: Trace) -> None:
    if trace == "tokens":
        out.print(side_by_side(group, out))
        return
    cells = cells_of(group, rows, fancy=unicode_ok(out))
    _print(out, answers.side_by_side(cells, out))


def cells_of(group: Sequence[Run], rows: Sequence[Row], *, fancy: bool) -> list[AnswerCell]:
    """The answers to one prompt, each with its speed and where it departs from the target's."""
    target = target_of(group)
    speeds = {row.strategy: row.speed_vs_target for row in rows}
    cells = []
    for run in group:
        speed = speeds.get(run.spec)
        note = "" if speed is None or run is target else number(speed, 2, "x")
        cells.append(
            AnswerCell.of(run, short_name(run.spec, oracle=run.oracle, fancy=fancy), note, divergence(run, target))
        )
    return cells


def prompt_line(groups: Sequence[Sequence[Run]]) -> str:
    """The prompt, or the first one and the number of others."""
    first = _short(groups[0][0].prompt)
    prompts = len({*prompts_of([group[0] for group in groups])})
    return first if prompts == 1 else f"{first} and {prompts - 1} more"


def _print(out: Console, what: RenderableType) -> None:
    """Print no wider than a page, however wide the terminal is."""
    out.print(what, width=min(out.width, WIDEST))


def print_explanation(comparison: Comparison, screen: Screen) -> None:
    """Print what explains the table's times."""
    if not screen.quiet:
        for line in notes(comparison, verbose=screen.verbose, fancy=unicode_ok(screen.out)):
            _print(screen.out, Text(f"\n{line}"))


def notes(comparison: Comparison, *, verbose: bool = False, fancy: bool = True) -> Iterator[str]:
    """Why it is not faster, and whether the machine was quiet enough to tell."""
    lengths = [length_line(each, fancy=fancy) for each in comparison.draft_lengths if each.stops or verbose]
    lengths = lengths or [length_line(each, fancy=fancy) for each in comparison.draft_lengths[:1]]
    if lengths:
        yield "\n".join(lengths)
    if comparison.explanation is not None:
        yield sentence(comparison.explanation, fancy=fancy)
    if comparison.profile is not None and verbose:
        yield steps_line(comparison.profile)
    noise = noise_line(comparison.spread, _cpu_threads(comparison))
    if noise is not None:
        yield noise


def _cpu_threads(comparison: Comparison) -> int | None:
    """The number of CPU threads used; None on a GPU, and for older documents."""
    first = comparison.runs[0] if comparison.runs else None
    if first is None or first.pair.target.device != "cpu":
        return None
    threads = first.environment.get("threads", "")
    return int(threads) if threads.isdecimal() else None


def pair_line(run: Run) -> str:
    """The pair and its precisions, as the models ran."""
    pair = run.pair
    batch = f"; throughput of {run.batch_size} answers at once" if run.batch_size > 1 else ""
    return f"{pair.name}: {pair.dtypes} on {run.environment.get('device', '')}{batch}"


def ended_early_line(runs: Sequence[Run]) -> str | None:
    """The number of answers that the user or an error ended, and their strategies unless all are; None without any."""
    early = [run for run in runs if run.finish_reason == "interrupted"]
    if not early:
        return None
    all_specs, specs = (dict.fromkeys(run.spec for run in some) for some in (runs, early))
    which = "" if len(specs) == len(all_specs) else f": {', '.join(short_name(spec, fancy=False) for spec in specs)}"
    return f"ended early: {len(early)} of {len(runs)} answers are shown as far as they got{which}"


def limits_line(pair: PairInfo, rows: Sequence[Row]) -> str | None:
    """Why some tokens are never drafted, if so, and how much of the draft's mass is on the others."""
    reasons = "; ".join(pair.limits)
    masses = {number(row.shared_mass) for row in rows if row.shared_mass is not None}
    if not masses:
        return reasons or None
    return f"{reasons}, with q(I) = {' to '.join(sorted({min(masses), max(masses)}))} of its mass"


def by_prompt(runs: list[Run]) -> Iterator[list[Run]]:
    """Group runs by prompt: a group ends where its first strategy recurs."""
    group: list[Run] = []
    for run in runs:
        if group and run.spec == group[0].spec:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _short(text: str | None, width: int = 70) -> str:
    line = plain(" ".join((text or "(token ids)").split()))
    return line if cell_len(line) <= width else set_cell_size(line, width - 3).rstrip() + "..."
