"""Progress reports of long work, independent of how they are displayed."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Called a few times a second while `pull` works; hub downloads call it from their own threads.

    `done` and `total` are bytes; a total of 0 means that it is not known (yet), and it may be corrected later.
    """

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` bytes of `stage` are done."""


def silent(stage: str, done: int, total: int) -> None:
    """A report that does nothing."""
