"""A rule that accepts drafts at a chosen rate, whatever the models predict.

pi = a q, plus 1 - a on a token that q hardly ever draws: a valid distribution, but a meaningless one. A drafted token
passes with probability a, and everything else costs what it always does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Forced(Rule):
    """Accept every drafted token except the least likely one with probability `acceptance`."""

    formula: ClassVar[str] = "pi = a q + (1 - a) [v = argmin q]"
    reads_draft: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    acceptance: float = 0.8

    def apply(self, d: Dists) -> Tensor:
        """Mix the draft's distribution with its least likely token; the bonus follows p, as in `speculative`."""
        n = d.q.shape[0]
        pi = d.p.clone()
        pi[:n] = d.q * self.acceptance
        pi[:n].scatter_add_(1, d.q.argmin(dim=-1, keepdim=True), pi.new_full((n, 1), 1 - self.acceptance))
        return pi
