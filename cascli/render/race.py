"""Strategies at work, side by side: their answers grow as tokens are decided."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.live import Live

from cascli.render.answers import AnswerCell, columns_of, side_by_side
from cascli.render.console import Screen, undone_if_interrupted, unicode_ok
from cascli.render.marks import is_mixed, short_name
from cascli.trace import Handover, Round, Run

REFRESH = 0.1
"""Seconds between two redraws; drawing happens between two rounds and is charged to no strategy."""


class RaceView:
    """Shows answers while they are written, to a person who watches; the last picture is removed at the end."""

    def __init__(self, screen: Screen, specs: Sequence[str]) -> None:
        self._screen = screen
        fancy = unicode_ok(screen.out)
        self._cells = [AnswerCell(short_name(spec, fancy=fancy), is_mixed(spec)) for spec in specs]
        self._seconds, self._ended = [0.0] * len(specs), [False] * len(specs)
        self._drawn = 0.0
        self._live = Live(console=screen.out, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        """Start with empty columns."""
        with undone_if_interrupted(self._screen.out, self._live.stop):
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the picture."""
        self._live.stop()

    def event(self, place: int, event: Any) -> None:
        """Show what a strategy did: a round, a cascade's decision, or the end of an answer."""
        if isinstance(event, Run):
            self.ended(place, event)
        elif isinstance(event, Handover):
            self.handover(place, event)
        else:
            self.round(place, event.round)

    def round(self, place: int, round_: Round) -> None:
        """Show what a round added."""
        cell = self._cells[place]
        if self._ended[place]:  # the next prompt or turn
            cell.rounds, self._seconds[place], self._ended[place] = [], 0.0, False
        cell.rounds.append(round_)
        self._seconds[place] += round_.seconds.total
        written = sum(len(each.emitted) for each in cell.rounds)
        cell.note = f"{written} · {written / self._seconds[place]:.1f} tok/s" if self._seconds[place] else ""
        self._maybe_draw()

    def handover(self, place: int, decision: Handover) -> None:
        """Remove an answer that was deferred to the target."""
        if decision.deferred:
            self._cells[place].rounds = []
            self._cells[place].note = "deferred to the target"
        self._maybe_draw()

    def ended(self, place: int, run: Run) -> None:
        """Mark an answer as complete."""
        rate = "" if run.metrics.tokens_per_second is None else f" · {run.metrics.tokens_per_second:.1f} tok/s"
        self._cells[place].note = f"{len(run.token_ids)}{rate} · done"
        self._ended[place] = True
        self._draw()

    def _maybe_draw(self) -> None:
        if time.perf_counter() - self._drawn >= REFRESH:
            self._draw()

    def _draw(self) -> None:
        """Draw as many lines of each answer as the terminal has room for."""
        console = self._screen.out
        rows = -(-len(self._cells) // columns_of(len(self._cells), console))
        lines = max((console.height - 1) // rows - 3, 1)
        self._live.update(side_by_side(self._cells, console, lines), refresh=True)
        self._drawn = time.perf_counter()
