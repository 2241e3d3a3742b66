"""A control: the target alone, cut to the smallest set of likeliest tokens that reach `mass` at temperature 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class TopP(Rule):
    """A control: the target alone, cut to its nucleus."""

    formula: ClassVar[str] = "pi = norm(p on K); K: the fewest largest p1 that reach mass"
    source: ClassVar[str] = "Holtzman et al. 2020"
    lossless_when: ClassVar[str] = "mass = 1"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "a control, like min-p"
    reads_draft: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("mass", 1.0, 1e-9, draft_only=False)

    mass: Annotated[float, Field(gt=0, le=1)] = 0.9

    def apply(self, d: Dists) -> Tensor:
        """The target restricted to K."""
        from cascli.rules._tail import truncated

        if self.mass >= 1:
            return d.p
        order = d.per_token("p1").argsort(dim=-1, descending=True, stable=True)  # the first of equals, as in `warp`
        probs = d.p1.gather(-1, order)
        before = probs.double().cumsum(dim=-1) - probs
        keep = (before < self.mass).scatter(-1, order, before < self.mass)
        return truncated(d, keep)
