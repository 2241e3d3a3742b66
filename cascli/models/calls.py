"""The calls that a strategy will make to a model, so that a runner can prepare before timing starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Role = Literal["draft", "target"]
ROLES: tuple[Role, ...] = ("draft", "target")


class Write(NamedTuple):
    """A model writes on its own: it reads the tokens that it has not read yet, then each token that it draws."""

    unread: int
    """Number of tokens that it reads first."""
    drawn: int
    """Number of tokens that it draws."""
    read_last: bool = False
    """Whether it also reads the last drawn token, for the distribution after it."""

    @property
    def steps(self) -> int:
        """Number of forward passes."""
        return self.drawn + self.read_last

    @property
    def tokens(self) -> int:
        """Total number of tokens read."""
        return self.unread + self.steps - 1


class Calls(NamedTuple):
    """The upcoming calls to one model."""

    reads: Sequence[tuple[int, int]] = ()
    """Numbers of tokens and of rows of logits; capturing the largest first shares memory best."""
    writes: Sequence[Write] = ()
    reads_base: bool = False
    """Whether the distributions at temperature 1 are needed for drawn tokens."""


ALONE = Calls(writes=[Write(1, 1)])
"""A single model that writes token by token."""
