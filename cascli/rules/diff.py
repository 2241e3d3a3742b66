"""Keep the draft model where it is about as confident as the target.

keep q iff max q1 >= max p1 - alpha (Narasimhan et al. 2025, eq. 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Dial, Threshold, ThresholdRule


@dataclass(frozen=True)
class Diff(ThresholdRule):
    """Keep the draft model where it is about as confident as the target."""

    formula: ClassVar[str] = "keep q iff max q1 >= max p1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 5"
    lossless_when: ClassVar[str] = "alpha = -1"
    greedy: ClassVar[str] = "judged by q1 and p1"
    relatives: ClassVar[str] = "chow, with the target's confidence in place of 1"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("alpha", -1.0, 1.0)

    def threshold(self) -> Threshold:
        """Max q1 >= max p1 - alpha."""
        return Threshold("best q1", constant=-self.alpha, of_best_p1=1.0)
