"""Stops before a token that the draft is unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.stops.base import Reading, Stop


@dataclass(frozen=True)
class MaxQ(Stop):
    """Stops where no token has a probability of `least_q`; the draft step that shows this has then been made."""

    summary: ClassVar[str] = "stops before a token where the draft's best probability is low"
    formula: ClassVar[str] = "stop before drawing if max q1 < least_q"
    source: ClassVar[str] = "Kim et al. 2023 (BiLD); llama.cpp's p-min"
    needs_confidence: ClassVar[bool] = True
    reads: ClassVar[Reading | None] = "best"

    least_q: Annotated[float, Field(ge=0, le=1)] = 0.6

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Decide by the best probability."""
        return here >= self.least_q
