"""Keep each token whose target probability is within alpha of the target's best.

keep v iff p1(v) >= max p1 - alpha (Narasimhan et al. 2025, eq. 14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.rules.base import Dial, RelaxedRule, Threshold


@dataclass(frozen=True)
class TokenV2(RelaxedRule):
    """Keep each token whose target probability is within alpha of the target's best."""

    formula: ClassVar[str] = "keep v iff p1(v) >= max p1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 14"
    lossless_when: ClassVar[str] = "alpha < 0"
    greedy: ClassVar[str] = "keeps the draft's token iff p1 is within alpha of its best"
    relatives: ClassVar[str] = (
        "token-v3, with a difference in place of a ratio; with top=N at temperature 0 the relaxed acceptance of"
        " TensorRT-LLM (there with where=thinking) and Modular MAX"
    )
    dial: ClassVar[Dial | None] = Dial("alpha", -0.001, 1.0)

    def threshold(self) -> Threshold:
        """p1(v) >= max p1 - alpha, among the target's `top` likeliest tokens."""
        return Threshold("p1", constant=-self.alpha, of_best_p1=1.0, likeliest=self.top or 0)
