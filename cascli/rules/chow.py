"""Chow's rule: keep the draft model where its own confidence is high.

keep q iff max q1 >= 1 - alpha (Narasimhan et al. 2025, eq. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Dial, Threshold, ThresholdRule


@dataclass(frozen=True)
class Chow(ThresholdRule):
    """Chow's rule: keep the draft model where its own confidence is high."""

    formula: ClassVar[str] = "keep q iff max q1 >= 1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 2"
    lossless_when: ClassVar[str] = "alpha < 0"
    greedy: ClassVar[str] = "judged by q1"
    reads_target: ClassVar[bool] = False
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("alpha", -0.5, 1.0)

    def threshold(self) -> Threshold:
        """Max q1 >= 1 - alpha."""
        return Threshold("best q1", constant=1 - self.alpha)
