"""A line of progress on stderr while weights are fetched, converted and loaded; silent in pipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from cascli.render.console import Screen, undone_if_interrupted, unicode_ok
from cascli.trace import Run

if TYPE_CHECKING:
    from cascli.models.stages import Stage


ROOMY = 100
"""Terminal width from which the bar of counted work is longer."""
COUNTED, BYTES, SHARE = 39, 34, 24
"""Columns for all but name and bar: `1000/1000 0:00:00 left 0:00:00`, `1.2/3.4 GB 12:34` or `100% 12:34 left`."""
LEAST = 12
"""Minimum number of characters for what is being done."""


class Progress:
    """Shows one bar per stage; whoever reports a stage names it."""

    def __init__(self, screen: Screen, title: str, *, counted: bool = False) -> None:
        self._title, self._ticks = title, 0
        shown = screen.err.is_interactive and not screen.quiet
        bar = 24 if counted and screen.err.width >= ROOMY else 16
        self._bars = Bars(
            SpinnerColumn(),
            _Description(screen.err, bar, counted=counted),
            BarColumn(bar_width=bar),
            *([MofNCompleteColumn(), TimeElapsedColumn()] if counted else [_Amount(), _Time()]),
            *([TextColumn("left"), TimeRemainingColumn()] if counted else []),
            console=screen.err,
            transient=True,
            disable=not shown,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start with the title alone."""
        with undone_if_interrupted(self._bars.console, self._bars.stop):
            self._bars.start()
            self._tasks[""] = self._bars.add_task(self._title, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars."""
        self._bars.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Advance a stage to `done` of `total` bytes."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, in_bytes=True)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def stage(self, where: Stage) -> None:
        """Show how far loading is: its share of the whole, and the time left if known."""
        end = None if where.seconds_left is None else time.monotonic() + where.seconds_left
        self._bars.update(
            self._tasks[""], description=where.text, completed=where.done, total=where.total or None, end=end
        )

    def step(self, name: str, done: int, total: int) -> None:
        """Show which of `total` pieces of work starts now."""
        self._ticks = 0
        self._bars.update(self._tasks[""], description=name, completed=done, total=total)
        self._title = name

    def counting(self, name: str, total: int) -> Callable[[int, object], None]:
        """A callback that counts the runs among the events of a comparison."""
        done = 0

        def event(_: int, event: object) -> None:
            nonlocal done
            if isinstance(event, Run):
                done += 1
                self.step(name, done, total)
            else:
                self.tick()

        self.step(name, 0, total)
        return event

    def above(self, show: Callable[[], None]) -> None:
        """Print something permanent above the bars."""
        self._bars.stop()
        try:
            show()
        finally:
            self._bars.start()

    def say(self, name: str) -> None:
        """Show what is being done if there is nothing to count."""
        self._bars.update(self._tasks[""], description=name)

    def tick(self) -> None:
        """Show that the piece of work is still going on."""
        self._ticks += 1
        self._bars.update(self._tasks[""], description=f"{self._title}, round {self._ticks}")


class _Description(ProgressColumn):
    """What is being done, shortened so that bar, count and time left keep their places.

    A long name is cut in the middle: it starts with what is being done and ends with its speed.
    """

    def __init__(self, console: Console, bar: int, *, counted: bool) -> None:
        super().__init__()
        self._console, self._bar, self._counted = console, bar, counted

    def render(self, task: Task) -> Text:
        """The description in one line."""
        reserved = COUNTED if self._counted else BYTES if task.fields.get("in_bytes") else SHARE
        room = max(self._console.width - self._bar - reserved, LEAST)
        return Text(shortened(" ".join(task.description.split()), room, "…" if unicode_ok(self._console) else ".."))


def shortened(text: str, room: int, gap: str = "…") -> str:
    """Shorten a text to `room` characters: its beginning and, after a gap, its last words.

    >>> shortened("gsm8k/12 speculative-cascade:rule=opt,alpha=0.1,k=4, 115.1 tokens/s", 36)
    'gsm8k/12 speculativ…, 115.1 tokens/s'
    """
    if len(text) <= room:
        return text
    tail = text[text.rfind(", ") :] if ", " in text else ""
    if len(tail) + len(gap) >= room:
        tail = ""
    return text[: room - len(tail) - len(gap)] + gap + tail


class _Amount(ProgressColumn):
    """Bytes for downloads, a percentage for loading, and nothing for what cannot be counted."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        """The text after a bar."""
        if task.fields.get("in_bytes"):
            return self._bytes.render(task) if task.total or task.completed else Text()
        return Text("" if task.total is None else f"{task.percentage:3.0f}%", style="progress.percentage")


class _Time(ProgressColumn):
    """The time left if loading has reported it, else the elapsed time."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds."""
        end = task.fields.get("end")
        seconds = task.elapsed or 0.0 if end is None else max(0.0, end - time.monotonic())
        clock = str(timedelta(seconds=int(seconds))).removeprefix("0:")
        return Text(clock if end is None else f"{clock} left", style="progress.elapsed")
