"""Notebook output: results as HTML, and progress bars.

The bars are tqdm's (`tqdm.auto`), like those that transformers and the hub show next to them: widgets if ipywidgets is
installed, text if not. Rich's bars show nothing without ipywidgets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

DRAWING = "cascli.render.notebook"
"""Module that renders results. It is in a higher layer than this one, so it is imported by name, like a plug-in."""
WIDTH = 40
"""Maximum length of the description, in characters."""
OnProgress = Callable[[str, int, int], None]
"""Called with what was done last, the amount done and the total."""
PAUSE = 0.1
"""Seconds between two redraws: each is a message to the notebook's front end."""


class Place(Protocol):
    """Progress of work, as reported by loading."""

    @property
    def text(self) -> str:
        """What is being done."""

    @property
    def done(self) -> int:
        """Amount done."""

    @property
    def total(self) -> int:
        """Total amount; 0 if unknown."""


def html_of(result: object) -> str | None:
    """A result as self-contained HTML; None if it reads better as text."""
    drawn: str | None = import_module(DRAWING).html_of(result)
    return drawn


def running() -> bool:
    """Whether this process is a notebook kernel, not a script or a terminal."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and hasattr(get_ipython(), "kernel")


def bars() -> Bars | None:
    """Progress bars in a notebook; None elsewhere, since a program passes its own callbacks."""
    return Bars() if running() else None


class Bars:
    """Progress bars, one after the other, used for each progress callback that the Python caller does not pass."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._in_bytes = False
        self._drawn = float("-inf")

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show what is being done, the amount done and the total; usable as `on_progress`."""
        self._show(what, done, total, in_bytes=False)

    def report(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage in bytes; usable as the `report` of a download."""
        self._show(stage, done, total, in_bytes=True)

    def stage(self, where: Place) -> None:
        """Show the progress of loading."""
        self._show(where.text, where.done, where.total, in_bytes=True)

    def _show(self, what: str, done: int, total: int, *, in_bytes: bool) -> None:
        from tqdm.auto import tqdm

        if self._bar is not None and (in_bytes != self._in_bytes or done < self._bar.n):
            self.close()  # different work
        if self._bar is None:
            self._in_bytes = in_bytes
            self._bar = tqdm(total=total or None, leave=False, unit="B" if in_bytes else "", unit_scale=in_bytes)
        self._bar.total, self._bar.n = total or None, done
        self._bar.set_description(what if len(what) <= WIDTH else f"{what[: WIDTH - 1]}…", refresh=False)
        now = time.monotonic()
        if now - self._drawn >= PAUSE or done == total:
            self._drawn = now
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Self:
        """Show nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar, even after an error."""
        self.close()
