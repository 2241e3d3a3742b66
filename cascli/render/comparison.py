"""A whole comparison on the terminal: the table, the traces, and what to make of them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from cascli.analysis.comparison import Comparison
from cascli.render.console import Screen
from cascli.render.explanation import noise_line, sentence, steps_line
from cascli.render.table import scatter_line, tables
from cascli.render.trace import side_by_side
from cascli.trace import Run

TRACES_SHOWN = 3


def print_comparison(comparison: Comparison, screen: Screen) -> None:
    """The table, the traces of the first prompts (of the first alone if there are many), and what to make of them."""
    print_results(comparison, screen)
    print_explanation(comparison, screen)


def print_results(comparison: Comparison, screen: Screen) -> None:
    """What was there when the last answer was."""
    for number, table in enumerate(tables(comparison.summary, screen.out, verbose=screen.verbose)):
        if number:
            screen.out.print()
        screen.out.print(table)
    if screen.quiet:
        return
    lines = [pair_line(comparison.runs[0]), scatter_line(comparison.summary)]
    screen.out.print(Text("\n" + "\n".join(line for line in lines if line)))
    groups = list(by_prompt(comparison.runs))
    shown = groups if len(groups) <= TRACES_SHOWN or screen.verbose else groups[:1]
    for group in shown:
        if len(groups) > 1:
            screen.out.print(Text(f"\nprompt: {_short(group[0].prompt)}", style="bold"))
        screen.out.print(side_by_side(group, screen.out))
    if len(shown) < len(groups):
        screen.note(
            f"traces of {len(groups) - len(shown)} more prompts not shown; -v shows all, -o FILE.json keeps them"
        )


def print_explanation(comparison: Comparison, screen: Screen) -> None:
    """What to make of the table's times."""
    if not screen.quiet:
        for line in notes(comparison, verbose=screen.verbose):
            screen.out.print(Text(f"\n{line}"))


def notes(comparison: Comparison, *, verbose: bool = False) -> Iterator[str]:
    """Why it is not faster, and whether the machine was quiet enough to say."""
    if comparison.explanation is not None:
        yield sentence(comparison.explanation)
    if comparison.profile is not None and verbose:
        yield steps_line(comparison.profile)
    noise = noise_line(comparison.spread)
    if noise is not None:
        yield noise


def pair_line(run: Run) -> str:
    """The pair and its precisions: the rows are about these models, as they ran."""
    pair = run.pair
    return f"{pair.name}: {pair.dtypes} on {run.environment.get('device', '')}"


def by_prompt(runs: list[Run]) -> Iterator[list[Run]]:
    """Runs of one prompt together: a group ends where its first strategy comes again."""
    group: list[Run] = []
    for run in runs:
        if group and run.spec == group[0].spec:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _short(text: str | None, width: int = 70) -> str:
    line = " ".join((text or "(token ids)").split())
    return line if len(line) <= width else line[: width - 3] + "..."
