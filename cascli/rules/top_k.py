"""A control: the target alone, cut to its n likeliest tokens at temperature 1; ties with the last one are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class TopK(Rule):
    """A control: the target alone, cut to its n likeliest tokens."""

    formula: ClassVar[str] = "pi = norm(p on K); K: the n largest p1"
    source: ClassVar[str] = "Fan et al. 2018"
    lossless_when: ClassVar[str] = "n = V"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "a control, like min-p"
    reads_draft: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("n", 1 << 20, 1, "integer", draft_only=False)

    n: Annotated[int, Field(ge=1)] = 10

    def apply(self, d: Dists) -> Tensor:
        """The target restricted to K."""
        from cascli.rules._tail import truncated

        return truncated(d, d.per_token("p1") >= d.nth_largest("p1", self.n))
