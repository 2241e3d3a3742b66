"""Stops after a drafted token that the draft itself found unlikely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.stops.base import Reading, Stop


@dataclass(frozen=True)
class Confidence(Stop):
    """Stops after a token with a probability below `least_q`, which is verified like the others."""

    summary: ClassVar[str] = "stops after a token whose own probability is low; that token is verified"
    formula: ClassVar[str] = "stop after drawing x if q1(x) < least_q"
    source: ClassVar[str] = "transformers' assistant_confidence_threshold, without its adaptation"
    needs_confidence: ClassVar[bool] = True
    reads: ClassVar[Reading | None] = "chance"

    least_q: Annotated[float, Field(ge=0, le=1)] = 0.4

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Decide by the probability of the last token."""
        return not drawn or drawn[-1] >= self.least_q
