"""Keep each token that the target finds nearly its best, without a coin, and test the others exactly.

K = {v: p1(v) >= (1 - alpha) max p1}. On K the draft stands; outside it passes with min(1, p / q), and what is rejected
is drawn from norm(max(0, p - q)). token-v3 has the same K and draws anew from p: this rule never accepts fewer drafts
than it, and is never farther from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import Alpha, Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Head(Rule):
    """Keep what the target finds nearly its best; test the rest exactly."""

    formula: ClassVar[str] = (
        "pi = q on K, min(q, p) outside, + rejected mass * norm(max(0, p - q)); K: p1(v) >= (1 - alpha) max p1"
    )
    source: ClassVar[str] = "MTPLX #485 and mlx-serve #419 (as TokenV3)"
    lossless_when: ClassVar[str] = "alpha < 0"
    greedy: ClassVar[str] = "token-v3"
    relatives: ClassVar[str] = (
        "the K of token-v3 and min-p; never accepts fewer drafts than token-v3, never farther from p"
    )
    dial: ClassVar[Dial | None] = Dial("alpha", -0.001, 1.0)

    alpha: Alpha = 0.3

    def apply(self, d: Dists) -> Tensor:
        """The draft's mass on K, the overlap elsewhere, and the rest from the residual of p."""
        from cascli.rules._tail import completed

        kept = d.p1 >= (1 - self.alpha) * d.p1.amax(dim=-1, keepdim=True)
        return completed(d.q.where(kept, d.q.minimum(d.p)), d)
