"""What a strategy will ask of a model, so that a runner can get ready before the clock starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Role = Literal["draft", "target"]
ROLES: tuple[Role, ...] = ("draft", "target")


class Write(NamedTuple):
    """A model writes by itself: it reads what it has not yet read, and then every token that it draws."""

    unread: int
    """How many tokens of the text it reads first."""
    drawn: int
    """How many it draws."""
    read_last: bool = False
    """Whether it also reads the last one, for the distribution after it."""

    @property
    def steps(self) -> int:
        """Forward passes."""
        return self.drawn + self.read_last

    @property
    def tokens(self) -> int:
        """Tokens that are read in all."""
        return self.unread + self.steps - 1


class Calls(NamedTuple):
    """The calls to come, of one model."""

    reads: Sequence[tuple[int, int]] = ()
    """Tokens and rows of logits; the largest first share memory best."""
    writes: Sequence[Write] = ()
    reads_base: bool = False
    """Whether what is drawn is wanted with its distribution at temperature 1."""


ALONE = Calls(writes=[Write(1, 1)])
"""One model token by token."""
