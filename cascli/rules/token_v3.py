"""Keep each token whose target probability is at least (1 - alpha) of the target's best.

keep v iff p1(v) >= (1 - alpha) max p1 (Narasimhan et al. 2025, eq. 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Dial, RelaxedRule, Threshold


@dataclass(frozen=True)
class TokenV3(RelaxedRule):
    """Keep each token whose target probability is at least (1 - alpha) of the target's best."""

    formula: ClassVar[str] = "keep v iff p1(v) >= (1 - alpha) max p1"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 15"
    lossless_when: ClassVar[str] = "alpha < 0"
    greedy: ClassVar[str] = "keeps the draft's token iff the target finds it at least (1 - alpha) as likely as its best"
    relatives: ClassVar[str] = (
        "head at temperature 0, where Leviathan's greedy lenience 1 - alpha is the same too, and with tail=exact at"
        " any; with top=N at temperature 0 relaxed acceptance by a ratio (token-v2: a difference); its control is min-p"
    )
    dial: ClassVar[Dial | None] = Dial("alpha", -0.001, 1.0)

    def threshold(self) -> Threshold:
        """p1(v) >= (1 - alpha) max p1, among the target's `top` likeliest tokens."""
        return Threshold("p1", of_best_p1=1 - self.alpha, likeliest=self.top or 0)
