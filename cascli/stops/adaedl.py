"""Stops where an entropy-based bound on acceptance is below a limit that adapts to what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.stops.base import Reading, Stop, Stopping
from cascli.trace import StepCosts

STEP = 0.01
"""Change of the limit per round."""


@dataclass(frozen=True)
class Adaedl(Stop):
    """Stops where 1 - sqrt(scale H(q1)) is below a limit, which rises while fewer drafts than `aim` pass, else falls.

    The share is of tested drafts, averaged over rounds so that older ones lose half their weight each round. This
    average and the limit's update were not checked against the paper's.
    """

    summary: ClassVar[str] = "stops where an entropy bound on the acceptance falls below an adaptive limit"
    formula: ClassVar[str] = "stop before drawing if 1 - sqrt(scale H(q1)) < limit; limit moves by 0.01 per round"
    source: ClassVar[str] = "after Agrawal et al. 2024 (AdaEDL)"
    needs_confidence: ClassVar[bool] = True
    reads: ClassVar[Reading | None] = "entropy"

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    limit: Annotated[float, Field(ge=0, le=1)] = 0.4
    aim: Annotated[float, Field(ge=0, le=1)] = 0.9

    def begin(self, costs: StepCosts | None) -> Stopping:
        """Start an answer with its own limit."""
        return _Adapting(self)


class _Adapting(Stopping):
    reads: ClassVar[Reading | None] = Adaedl.reads

    def __init__(self, stop: Adaedl) -> None:
        self._stop, self._limit, self._passed = stop, stop.limit, stop.aim

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        return 1 - math.sqrt(self._stop.scale * here) >= self._limit

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        if kept + rejected:
            self._passed = (self._passed + kept / (kept + rejected)) / 2
            self._limit += STEP if self._passed < self._stop.aim else -STEP
            self._limit = min(max(self._limit, 0.0), 1.0)
