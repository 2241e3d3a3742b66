"""A control: the target alone, cut below a bound that falls with its entropy; the counterpart of typical acceptance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Eta(Rule):
    """A control: the target alone, cut where typical cuts."""

    formula: ClassVar[str] = "pi = norm(p on K); K: p(v) > min(epsilon, delta exp(-H(p))), or p(v) = max p"
    source: ClassVar[str] = "Hewitt et al. 2022 (eta sampling), with typical's parameters"
    lossless_when: ClassVar[str] = "epsilon = 0"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "the control of typical"
    reads_draft: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("epsilon", 0.0, 1.0, "log", draft_only=False)

    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.09
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.3

    def apply(self, d: Dists) -> Tensor:
        """The target restricted to K; its best tokens are included, as rounding may put max p below exp(-H(p))."""
        from cascli.rules._tail import truncated

        p, bound = d.per_token("p"), (self.delta * (-d.entropy("p")).exp()).clamp_max(self.epsilon)
        return truncated(d, (p > bound) | (p >= d.best("p")))
