"""Side-by-side traces: one column per strategy, one line per position of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cascli.analysis.comparison import first_divergence
from cascli.render.console import unicode_ok
from cascli.render.marks import LOOKS, ending, heading, legend, marked, replaced, simple, visible
from cascli.settings import TARGET
from cascli.trace import Emitted, Run

MIN_COLUMN = 20
INDEX_WIDTH = 4


@dataclass(frozen=True)
class Cell:
    """One position of one answer: its token, the draft that it replaced, and whether its round starts here."""

    token: Emitted
    rejected: str | None
    starts_round: bool


def cells(run: Run) -> list[Cell]:
    """The answer of a run, position by position."""
    column = []
    speculates = run.metrics.num_draft_tokens > 0
    for round_ in run.rounds:
        for i, token in enumerate(round_.emitted):
            draft = replaced(round_, i)
            column.append(Cell(token, None if draft is None else draft.text, starts_round=i == 0 and speculates))
    return column


def side_by_side(runs: Sequence[Run], console: Console) -> Group:
    """The traces of one prompt as one table, or as several stacked ones if the terminal is narrow."""
    colored, fancy = console.color_system is not None, unicode_ok(console)
    target, painter = target_of(runs), _Painter(colored, fancy)
    blocks: list[Table | Text] = [
        _table(group, target, painter, console.width) for group in _groups(runs, target, console.width)
    ]
    events: set[str] = {token.event for run in runs for token in run.emitted}
    if any(cell.rejected for run in runs for cell in cells(run)):
        events = events | {"rejected"}
    marks = "┌ a round begins (one target call) · ≠ first token that differs from target"
    notes = [legend(events, colored=colored), Text(marks if fancy else simple(marks), style="dim")]
    return Group(*(part for block in blocks for part in (Text(""), block)), Text(""), *notes)


def target_of(runs: Iterable[Run]) -> Run | None:
    """The answer of `target` to a prompt, if it is one of these."""
    return next((run for run in runs if run.strategy == TARGET), None)


def divergence(run: Run, target: Run | None) -> int | None:
    """Index of the first token that differs from the target's; None if there is none, or the prompts differ."""
    if target is None or run.prompt_token_ids != target.prompt_token_ids:
        return None
    return first_divergence(run, target)


def _groups(runs: Sequence[Run], target: Run | None, width: int) -> Iterator[list[Run]]:
    """As many columns as fit; every group starts with the target, for comparison."""
    fit = max((width - INDEX_WIDTH) // (MIN_COLUMN + 1), 2)
    if len(runs) <= fit:
        yield list(runs)
        return
    others = [run for run in runs if run is not target]
    lead = [target] if target is not None else []
    room = fit - len(lead)
    for start in range(0, len(others), room):
        yield lead + others[start : start + room]


def _table(runs: Sequence[Run], target: Run | None, painter: _Painter, width: int) -> Table:
    column = min((width - INDEX_WIDTH) // len(runs) - 1, 28)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=True, header_style="bold")
    table.add_column("#", justify="right", style="dim", width=INDEX_WIDTH - 1)
    for run in runs:
        table.add_column(Text(_heading(run)), width=column, no_wrap=False, overflow="fold")
    columns = [cells(run) for run in runs]
    marks = [divergence(run, target) for run in runs]
    for i in range(max(map(len, columns))):
        row = [
            painter.cell(column_cells[i], i == mark, column) if i < len(column_cells) else Text("")
            for column_cells, mark in zip(columns, marks, strict=True)
        ]
        table.add_row(str(i + 1), *row)
    ends = [Text(f"  ({ending(run.finish_reason)})", style="dim") for run in runs]
    table.add_row("", *ends)
    for line in _handovers(runs):
        table.add_row("", *line)
    return table


def _handovers(runs: Sequence[Run]) -> Iterator[list[Text]]:
    """For cascades: the confidence, and what was decided."""
    if any(run.handover for run in runs):
        yield [Text(_decision(run), style="dim") for run in runs]


def _decision(run: Run) -> str:
    decision = run.handover
    if decision is None:
        return ""
    sign = "<" if decision.deferred else ">="
    verdict = "deferred to the target" if decision.deferred else "draft kept"
    return f"  {decision.score} {decision.value:.2f} {sign} {decision.threshold:g}: {verdict}"


def _heading(run: Run) -> str:
    return heading(run.spec, run.oracle)


class _Painter:
    """Draws cells for one console."""

    def __init__(self, colored: bool, fancy: bool) -> None:
        self._colored, self._fancy = colored, fancy

    def cell(self, cell: Cell, diverges: bool, width: int) -> Text:
        """Gutter, the rejected draft if there was one, and the token."""
        gutter = "≠" if diverges else "┌" if cell.starts_round else " "
        sign = gutter if self._fancy else {"≠": "!", "┌": ">"}.get(gutter, " ")
        text = Text.assemble((sign, "bold red" if diverges else "dim"))  # a style for the whole would dim the token too
        room = width - 1
        if cell.rejected is not None:
            struck = self._token(cell.rejected, "rejected", room // 2)
            text.append_text(struck).append(" ")
            room -= len(struck) + 1
        return text.append_text(self._token(cell.token.text, cell.token.event, room))

    def _token(self, raw: str, event: str, room: int) -> Text:
        look = LOOKS[event]
        shown = visible(raw) if self._fancy else simple(visible(raw))
        extra = 0 if self._colored else len(look.before) + len(look.after)
        if len(shown) + extra > room:
            shown = shown[: max(room - extra - 1, 1)] + ("…" if self._fancy else ".")
        return marked(shown, event, colored=self._colored)
