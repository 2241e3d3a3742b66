"""Keep the draft model where it is about as confident as the target.

keep q iff max q1 >= max p1 - alpha (Narasimhan et al. 2025, eq. 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import KeepRule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.dists import Dists


@dataclass(frozen=True)
class Diff(KeepRule):
    """Keep the draft model where it is about as confident as the target."""

    formula: ClassVar[str] = "keep q iff max q1 >= max p1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 5"
    lossless_when: ClassVar[str] = "alpha = -1"
    reads_target: ClassVar[bool] = True
    alpha_lossless: ClassVar[float | None] = -1.0
    alpha_draft_only: ClassVar[float | None] = 1.0

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]`."""
        return d.q1.amax(dim=-1, keepdim=True) >= d.p1.amax(dim=-1, keepdim=True) - self.alpha
