"""The optimal deferral rule under log loss: entropies replace confidences.

As in opt, more disagreement makes deferral more costly. TV is computed on the distributions that tokens are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, KeepRule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class OptLog(KeepRule):
    """Keep the draft model unless the target's edge in entropy is worth the rejections that it costs."""

    formula: ClassVar[str] = "keep q iff H(q1) <= H(p1) + alpha TV(p, q)"
    source: ClassVar[str] = "Narasimhan et al. 2025, app. C.2"
    lossless_when: ClassVar[str] = "alpha -> -inf, where p and q differ"
    greedy: ClassVar[str] = "judged by q1 and p1, with the TV of one-hot distributions"
    relatives: ClassVar[str] = "opt, with entropies in place of confidences"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("alpha", -1e9, 1e9, "sinh")

    alpha: Annotated[float, Field(allow_inf_nan=False)] = 0.3

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]`."""
        return d.entropy("q1") <= d.entropy("p1") + self.alpha * d.disagreement()
