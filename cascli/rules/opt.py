"""Keep the draft model unless the target's edge in confidence is worth the rejections it costs.

keep q iff max q1 >= max p1 - alpha TV(p, q) (Narasimhan et al. 2025, eq. 10). TV is computed on the warped
distributions, from which tokens are drawn. Mind the sign: more disagreement means LESS deferral, because every
deferral then costs more rejected drafts. At temperature 1, alpha = 1 keeps every draft, since
max p - max q <= TV(p, q); with warping it need not, since the two sides then use different distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Threshold, ThresholdRule


@dataclass(frozen=True)
class Opt(ThresholdRule):
    """The plug-in estimate of the optimal speculative deferral rule."""

    formula: ClassVar[str] = "keep q iff max q1 >= max p1 - alpha TV(p, q)"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 10"
    lossless_when: ClassVar[str] = "alpha -> -inf"
    greedy: ClassVar[str] = "judged by q1 and p1, with the TV of one-hot distributions"
    relatives: ClassVar[str] = "diff where TV(p, q) = 1"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("alpha", -1e9, 1e9, "sinh")

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.3

    def threshold(self) -> Threshold:
        """Max q1 >= max p1 - alpha TV(p, q)."""
        return Threshold("best q1", of_best_p1=1.0, of_disagreement=-self.alpha)
