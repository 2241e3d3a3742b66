"""Stops where the draft's entropy predicts low acceptance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.stops.base import Reading, Stop


@dataclass(frozen=True)
class Svip(Stop):
    """Stops where sqrt(scale H(q1)), an estimate of the rejection rate, exceeds `limit`: by default, H > 0.6 nats."""

    summary: ClassVar[str] = "stops before a token where the draft's entropy is high"
    formula: ClassVar[str] = "stop before drawing if sqrt(scale H(q1)) > limit"
    source: ClassVar[str] = "Zhang et al. 2024 (SVIP)"
    needs_confidence: ClassVar[bool] = True
    reads: ClassVar[Reading | None] = "entropy"

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.15
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Decide by the entropy."""
        return math.sqrt(self.scale * here) <= self.limit
