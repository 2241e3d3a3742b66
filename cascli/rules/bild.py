"""Keep the draft model wherever the target finds the draft's best token likely enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, KeepRule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Bild(KeepRule):
    """Keep the draft model wherever the target finds the draft's best token likely enough."""

    formula: ClassVar[str] = "keep q iff -log p1(argmax q1) <= alpha"
    source: ClassVar[str] = "Kim et al. 2023 (BiLD), rollback; Narasimhan et al. 2025"
    lossless_when: ClassVar[str] = "alpha < 0"
    greedy: ClassVar[str] = "judged by p1"
    relatives: ClassVar[str] = "token-v2, token by token"
    dial: ClassVar[Dial | None] = Dial("alpha", -1.0, 1e3, "log", draft_only=False)

    alpha: Annotated[float, Field(ge=-1, allow_inf_nan=False)] = 1.0

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]`."""
        return -d.p1.gather(-1, d.likeliest("q1")).log() <= self.alpha
