"""Drafts two more tokens after a round in which every draft was kept, one fewer after any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.sampling.parameters import MOST_DRAFTED
from cascli.stops.base import Stop, Stopping
from cascli.trace import StepCosts


@dataclass(frozen=True)
class Heuristic(Stop):
    """Starts each answer with rounds of `start` tokens and never reads the draft: a round is drafted in one call."""

    summary: ClassVar[str] = "two tokens more after a round that was kept whole, one less after any other"
    formula: ClassVar[str] = "length + 2 if all drafts were kept, else max(1, length - 1)"
    source: ClassVar[str] = "transformers' num_assistant_tokens_schedule=heuristic_transient"

    start: Annotated[int, Field(ge=1, le=MOST_DRAFTED)] = 5

    def begin(self, costs: StepCosts | None) -> Stopping:
        """Start an answer with its own length."""
        return _Growing(self.start)


class _Growing(Stopping):
    def __init__(self, start: int) -> None:
        self._length = start
        self._requested = 0

    def most(self, n: int) -> int:
        self._requested = min(self._length, n)
        return self._requested

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        if kept + rejected:
            self._length = max(1, self._requested - 1) if rejected else self._requested + 2
