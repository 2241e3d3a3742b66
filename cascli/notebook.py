"""What a notebook is shown: results as HTML, and progress by the notebook's own bars.

Bars are tqdm's (`tqdm.auto`), as those of transformers and the hub that stand beside them: widgets where ipywidgets is
installed, text where it is not. Rich's show nothing without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

DRAWING = "cascli.render.notebook"
"""Where results are drawn: above all that they are made of, and so named here and not imported, as a plug-in is."""
WIDTH = 40
"""Characters of what is being done."""
OnProgress = Callable[[str, int, int], None]
"""Told what was done last, how much is done, and of how much."""
PAUSE = 0.1
"""Seconds between two drawings: each is a message to whoever shows the notebook."""


class Place(Protocol):
    """Where work is, as loading tells it."""

    @property
    def text(self) -> str:
        """What is being done."""

    @property
    def done(self) -> int:
        """How much is done."""

    @property
    def total(self) -> int:
        """Of how much; 0 where that is not known."""


def html_of(result: object) -> str | None:
    """A result as HTML that needs nothing else; None for one that is better read as text."""
    drawn: str | None = import_module(DRAWING).html_of(result)
    return drawn


def running() -> bool:
    """Whether this is a notebook's kernel, and not a script or a terminal."""
    asked = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return asked is not None and hasattr(asked(), "kernel")


def bars() -> Bars | None:
    """The notebook's bars; None where there is no notebook: a program says itself what it wants to be told."""
    return Bars() if running() else None


class Bars:
    """One bar after the other: for every callback of Python's functions that nobody has given."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._in_bytes = False
        self._drawn = float("-inf")

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say what is being done, how much is done, and of how much: an `on_progress`."""
        self._show(what, done, total, in_bytes=False)

    def report(self, stage: str, done: int, total: int) -> None:
        """Likewise in bytes: a `report` of downloads."""
        self._show(stage, done, total, in_bytes=True)

    def stage(self, where: Place) -> None:
        """Say where loading is."""
        self._show(where.text, where.done, where.total, in_bytes=True)

    def _show(self, what: str, done: int, total: int, *, in_bytes: bool) -> None:
        from tqdm.auto import tqdm

        if self._bar is not None and (in_bytes != self._in_bytes or done < self._bar.n):
            self.close()  # other work
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
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Self:
        """Show nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, whatever has happened."""
        self.close()
