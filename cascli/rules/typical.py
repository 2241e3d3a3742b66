"""Keep each token that is typical of the target: likelier than a bound that falls with the target's entropy.

K = {v: p(v) > min(epsilon, delta exp(-H(p)))}, H in nats, on the distribution that tokens are drawn from. A draft
outside K is redrawn from p, as in the published sampler. Public code adds 1e-5 inside the logarithm, which is off for
flat distributions over large vocabularies, and swaps the two defaults in one place; here epsilon is 0.09, delta 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, TokenRule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Typical(TokenRule):
    """Keep each token that is typical of the target."""

    formula: ClassVar[str] = "keep v iff p(v) > min(epsilon, delta exp(-H(p)))"
    source: ClassVar[str] = "Cai et al. 2024 (Medusa), typical acceptance"
    lossless_when: ClassVar[str] = "temperature 0"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "its control is eta"
    reads_base: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("epsilon", 1.0, 0.0, "log", lossless=False, draft_only=False)

    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.09
    delta: Annotated[float, Field(ge=0, le=1)] = 0.3

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, V]`."""
        return d.per_token("p") > (self.delta * (-d.entropy("p")).exp()).clamp_max(self.epsilon)
