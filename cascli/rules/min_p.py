"""A control: the target alone, cut to the tokens that head and token-v3 would keep at this alpha.

It gains whatever a lenient rule gains by cutting the target's tail, without the draft model's preferences.
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
class MinP(Rule):
    """A control: the target alone, cut where head and token-v3 cut."""

    formula: ClassVar[str] = "pi = norm(p on K); K: p1(v) >= (1 - alpha) max p1"
    source: ClassVar[str] = "Nguyen et al. 2025 (min-p sampling)"
    lossless_when: ClassVar[str] = "alpha = 1"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "the control of head and token-v3 at the same alpha; lossless at the other end"
    reads_draft: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("alpha", 1.0, 0.0, draft_only=False)

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9

    def apply(self, d: Dists) -> Tensor:
        """The target restricted to K."""
        from cascli.rules._tail import truncated

        return truncated(d, d.per_token("p1") >= (1 - self.alpha) * d.best("p1"))
