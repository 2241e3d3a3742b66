"""The optimal lossy rule: accept as often as a budget allows, with no avoidable loss.

pi = min(max(q, p / B), p / A) with 0 < A <= 1 <= B, where B follows from sum pi = 1. The same family over A serves
every budget: the share A itself (alpha = 1 - A; pi <= p / A), KL(p || pi) in nats, or TV(pi, p). If q meets the budget,
pi = q; if only A = 1 meets it, pi = p. Accepts as often as lenience = A, with a better residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.errors import UsageError
from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists

STEPS = 24
"""Newton steps, from above on a convex, piecewise linear function: they only fall, and converge after a few."""
HALVINGS = 40
"""Bisection steps for A, if a budget in kl or tv is given."""
Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Mentored(Rule):
    """The optimal lossy rule for a budget: alpha = 1 - A, or kl, or tv."""

    formula: ClassVar[str] = (
        "pi = min(max(q, p / B), p / A), sum pi = 1; A = 1 - alpha, or the least that meets kl or tv"
    )
    source: ClassVar[str] = "Tran-Thien 2023 (mentored decoding); arXiv 2609.30474"
    lossless_when: ClassVar[str] = "alpha = 0, kl = 0 or tv = 0"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "alpha accepts as often as lenience = 1 - alpha, at a smaller loss"
    reads_base: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("alpha", 0.0, 0.999999999, draft_only=False)

    alpha: Annotated[float, Field(ge=0, lt=1)] | None = None
    kl: Budget | None = None
    tv: Budget | None = None

    def __post_init__(self) -> None:
        """Reject more than one budget; alpha defaults to 0.3 if none is given.

        Raises:
            UsageError: more than one budget.
        """
        given = sum(each is not None for each in (self.alpha, self.kl, self.tv))
        if given > 1:
            raise UsageError("mentored takes one budget: alpha, kl or tv")
        if not given:
            object.__setattr__(self, "alpha", 0.3)

    def apply(self, d: Dists) -> Tensor:
        """pi at the A that meets the budget, row by row."""
        q, p = d.q.double(), d.p.double()
        given = self.alpha
        share = self._least_share(q, p) if given is None else q.new_full((*q.shape[:-1], 1), 1 - given)
        return _clamped(q, p, share).to(d.q.dtype)

    def _least_share(self, q: Tensor, p: Tensor) -> Tensor:
        """The smallest A `[n, 1]` whose pi is within the budget: both divergences fall as A grows."""
        low = q.new_zeros((*q.shape[:-1], 1))
        high = low + 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            within = self._within(q, p, middle)
            low, high = low.where(within, middle), middle.where(within, high)
        return high

    def _within(self, q: Tensor, p: Tensor, share: Tensor) -> Tensor:
        """Whether the pi of each A is within the budget, `[n, 1]`."""
        if self.tv is not None:  # pi lies between p and q, so TV(pi, p) is TV(p, q) minus the rejected mass
            spent = (q - p).clamp_min(0) - (q - p / share).clamp_min(0)
            return spent.sum(dim=-1, keepdim=True) <= self.tv
        pi = _clamped(q, p, share)
        return (p.xlogy(p) - p.xlogy(pi)).sum(dim=-1, keepdim=True) <= (self.kl or 0.0)


def _clamped(q: Tensor, p: Tensor, share: Tensor) -> Tensor:
    """min(max(q, t p), p / A) `[n, V]` with t = 1 / B in [0, 1] such that it sums to 1."""
    most = p / share
    cut = q > most
    fixed = most.where(cut, 0.0).sum(dim=-1, keepdim=True)
    free_q, free_p = q.where(~cut, 0.0), p.where(~cut, 0.0)
    t = share.new_ones(share.shape)
    for _ in range(STEPS):
        raised = t * free_p > free_q
        kept = free_q.where(~raised, 0.0).sum(dim=-1, keepdim=True)
        slope = free_p.where(raised, 0.0).sum(dim=-1, keepdim=True)
        step = ((1 - fixed - kept) / slope.masked_fill(slope <= 0, 1.0)).clamp(0, 1).where(slope > 0, t)
        before, t = t, step.minimum(t)  # a rounded remainder over a slope of 1e-17 may be anything
        if settled(t, before):
            break
    return most.where(cut, free_q.maximum(t * free_p))


def settled(t: Tensor, before: Tensor) -> bool:
    """Whether further steps change nothing; always False on a device, where testing would mean reading a value back."""
    return t.device.type == "cpu" and t.equal(before)
