"""Keep the draft model wherever its distribution is close enough to the target's.

Divergences of the distributions at temperature 1, in nats: js is bounded by ln 2, tv by 1, kl is KL(p1 || q1) and may
be infinite. The published code swaps the arguments of kl and js, and its js is unbounded, so that its thresholds do not
apply here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cascli.rules.base import ChoiceRule, Dial

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Fuzzy(ChoiceRule):
    """Keep the draft model wherever its distribution is close enough to the target's."""

    formula: ClassVar[str] = "keep q iff D(q1, p1) <= threshold; D: js, kl = KL(p1 || q1), tv"
    source: ClassVar[str] = "Holsman et al. 2025 (fuzzy speculative decoding)"
    lossless_when: ClassVar[str] = "threshold < 0"
    greedy: ClassVar[str] = "judged by q1 and p1"
    relatives: ClassVar[str] = "diff and opt, which compare confidences instead"
    reads_confidence: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = Dial("threshold", -0.001, 0.7, "log")

    threshold: Annotated[float, Field(ge=-1)] = 0.1
    divergence: Literal["js", "kl", "tv"] = "js"

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]`."""
        return d.divergence(self.divergence) <= self.threshold
