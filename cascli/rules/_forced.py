"""A rule under which drafts are accepted at a chosen rate, whatever the models say.

pi = a q + (1 - a) on a token that q does not write: lawful, and senseless. A drafted token passes with probability a,
and everything else costs what it always does.
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
    """pi under which every drafted token but the least likely one is accepted with probability `acceptance`."""

    formula: ClassVar[str] = "pi = a q + (1 - a) [v = argmin q]"
    reads_draft: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    acceptance: float = 0.8

    def apply(self, d: Dists) -> Tensor:
        """Mix the draft's law with a token that it does not write; the bonus follows p, as in `speculative`."""
        n = d.q.shape[0]
        pi = d.p.clone()
        pi[:n] = d.q * self.acceptance
        pi[:n].scatter_add_(1, d.q.argmin(dim=-1, keepdim=True), pi.new_full((n, 1), 1 - self.acceptance))
        return pi
