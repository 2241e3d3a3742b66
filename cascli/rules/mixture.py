"""Sample from a fixed mixture of both models.

pi = w p + (1 - w) q, where w is the target's weight: TV(pi, p) = (1 - w) TV(p, q), and a share w TV(p, q) of the drafts
is rejected. Other implementations give the draft's weight, as alpha. pi / p is unbounded. If each model is left with
one token (temperature 0, top-k 1, or a nucleus of one), mixing the two would toss a coin; instead the one with the
larger w p1 + (1 - w) q1 is used, and neither identity holds there. It is left with one token if all others have
probability 0, not if the one has a rounded probability of 1. float32 rounds to 0 what is less likely than the best
token by e^-103 (e^-87 on some devices), so temperatures near 0 (at 0.01, gaps of about one nat) act like 0 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Mixture(Rule):
    """A fixed mixture of both models."""

    formula: ClassVar[str] = (
        "pi = w p + (1 - w) q, w = target_weight; where both are left with one token (temperature 0, or truncated to"
        " it) the better of the two by w p1 + (1 - w) q1"
    )
    source: ClassVar[str] = "DIVERSED, AISTATS 2026 (static); transformers' assistant mixing"
    lossless_when: ClassVar[str] = "target_weight = 1"
    greedy: ClassVar[str] = "the better of both models' tokens by target_weight p1 + (1 - target_weight) q1"
    relatives: ClassVar[str] = "transformers gives the target's weight, others the draft's"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("target_weight", 1.0, 0.0)

    target_weight: Annotated[float, Field(ge=0, le=1)] = 0.5

    def apply(self, d: Dists) -> Tensor:
        """Mixed probabilities; if both models are left with one token without being certain of it, the better one."""
        w = self.target_weight
        mixed = d.p.lerp(d.q, 1 - w)
        base = d.p1.lerp(d.q1, 1 - w).where((d.p > 0) | (d.q > 0), -1.0)
        best = d.p.new_zeros(d.p.shape).scatter(-1, base.argmax(dim=-1, keepdim=True), 1.0)
        # Counted, since a probability of 1 may be rounded, with others left that the models disagree on.
        q, p, q1, p1 = ((each > 0).sum(dim=-1, keepdim=True) == 1 for each in d)
        greedy = q & p & ~(q1 & p1)
        return best.where(greedy, mixed)
