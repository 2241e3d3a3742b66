"""An evaluation on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascli.evaluation.table import EvaluatedTask, Evaluation, Score
from cascli.render.console import Screen, plain_table, unicode_ok
from cascli.render.marks import short_name
from cascli.render.numbers import DASH, counted, number
from cascli.render.sweep import sweep_tables

ROOMY = 60
"""Terminal width from which task, score and strategy are side by side."""
NO_SCORE = "score"
"""Heading if no score of single answers is between 0 and 1."""


def print_evaluation(evaluation: Evaluation, screen: Screen) -> None:
    """Print the scores of lm-evaluation-harness, then the answer costs of each task, then notes."""
    screen.out.print(Group(*_parts(evaluation, screen.out)))
    for note in notes(evaluation):
        screen.note(note)


def _parts(evaluation: Evaluation, console: Console) -> Iterator[RenderableType]:
    if any(task.scores for task in evaluation.tasks):
        yield _scores(evaluation, console)
    for task in evaluation.tasks:
        if task.rows:
            yield ""
            yield Text(f"{task.name}, {counted(task.samples or 0, 'document')}", style="bold")
            yield from sweep_tables(task.rows, task.metric or NO_SCORE, console, whole="eval.json")


def _scores(evaluation: Evaluation, console: Console) -> Table:
    """One line per task, score and strategy; on a narrow terminal, task and score are above the strategies."""
    fancy, roomy = unicode_ok(console), console.width >= ROOMY
    table = plain_table(console)
    if roomy:
        table.add_column("task", overflow="fold")
        table.add_column("score", overflow="fold")
    table.add_column("strategy", style="bold", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("standard\nerror", justify="right", no_wrap=True, vertical="top")
    for task in evaluation.tasks:
        name = task.name
        for (metric, filter_), scores in _by_metric(task).items():
            heading = metric if filter_ == "none" else f"{metric}, {filter_}"
            if not roomy:
                table.add_row(Text(f"{task.name}, {heading}", style="not bold"))
            for score in scores:
                strategy = short_name(score.strategy, fancy=fancy) + ("*" if _of_target(task, score) else "")
                error = DASH if score.stderr is None else f"{'±' if fancy else '+-'}{number(score.stderr, 3)}"
                labels = (name, heading) if roomy else ()
                table.add_row(*labels, Text(strategy), number(score.value, 3), error)
                name, heading = "", ""
    return table


def _of_target(task: EvaluatedTask, score: Score) -> bool:
    """Whether the target's likelihoods are a part of a score."""
    return not task.written if score.likelihoods is None else score.likelihoods


def _by_metric(task: EvaluatedTask) -> dict[tuple[str, str], list[Score]]:
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in task.scores:
        groups.setdefault((score.metric, score.filter), []).append(score)
    return groups


def notes(evaluation: Evaluation) -> Iterator[str]:
    """Notes on what the numbers do not show."""
    if not any(task.scores for task in evaluation.tasks):
        yield "lm-evaluation-harness gave no scores"
    if any(_of_target(task, score) for task in evaluation.tasks for score in task.scores):
        yield "* likelihoods are the target's: a strategy has none of its own, and all share these, also within groups"
    if evaluation.not_honoured:
        yield f"not honoured, since no strategy supports it: {'; '.join(evaluation.not_honoured)}"
    if evaluation.shortened:
        cut = counted(evaluation.shortened, "prompt was", "prompts were")
        yield f"{cut} cut at the beginning to fit the pair's context"
