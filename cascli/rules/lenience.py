"""Test drafts against raised target probabilities: accept with min(1, f(p) / q).

f(p) = p / lenience (Leviathan et al. 2023, app. A.5), which bounds pi by p / lenience, or p ** lenience, which gives no
bound: at 0.5, a token with p = 1e-6 may become a thousand times as likely. A rejected draft is replaced from
norm(max(0, p - q)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Lenience(Rule):
    """Accept with min(1, f(p) / q)."""

    formula: ClassVar[str] = (
        "pi = min(q, f(p)) + rejected mass * norm(max(0, p - q)); f(p) = p / lenience, or p ** lenience"
    )
    source: ClassVar[str] = "Leviathan et al. 2023, app. A.5; Zhou et al. 2024 (DistillSpec)"
    lossless_when: ClassVar[str] = "lenience = 1"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = (
        "linear: accepts as often as mentored at alpha = 1 - lenience, where Leviathan's greedy lenience is token-v3"
    )
    reads_base: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("lenience", 1.0, 1e-9, "log", draft_only=False)

    lenience: Annotated[float, Field(gt=0, le=1)] = 0.5
    shape: Literal["linear", "exp"] = "linear"

    def apply(self, d: Dists) -> Tensor:
        """The mass that passes the lenient test, completed from the residual of p."""
        from cascli.rules._tail import completed

        likelier = d.p / self.lenience if self.shape == "linear" else d.p**self.lenience
        likelier = likelier.where(d.p > 0, 0.0)  # a lenience that float32 rounds to 0 would make it 0 / 0
        return completed(d.q.minimum(likelier), d)
