"""Keep each token whose draft probability is within alpha of the target's best probability.

keep v iff q1(v) >= max p1 - alpha (Narasimhan et al. 2025, eq. 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Dial, Threshold, ThresholdRule, TokenRule


@dataclass(frozen=True)
class TokenV1(TokenRule, ThresholdRule):
    """Keep each token whose draft probability is within alpha of the target's best probability."""

    formula: ClassVar[str] = "keep v iff q1(v) >= max p1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 13"
    lossless_when: ClassVar[str] = "alpha = -1"
    greedy: ClassVar[str] = "keeps the draft's token iff q1 is within alpha of max p1"
    relatives: ClassVar[str] = "diff, token by token"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("alpha", -1.0, 1.0)

    def threshold(self) -> Threshold:
        """q1(v) >= max p1 - alpha."""
        return Threshold("q1", constant=-self.alpha, of_best_p1=1.0)
