"""Chow's rule: keep the draft model where its own confidence is high.

keep q iff max q1 >= 1 - alpha (Narasimhan et al. 2025, eq. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.rules.base import KeepRule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.dists import Dists


@dataclass(frozen=True)
class Chow(KeepRule):
    """Chow's rule: keep the draft model where its own confidence is high."""

    formula: ClassVar[str] = "keep q iff max q1 >= 1 - alpha"
    source: ClassVar[str] = "Narasimhan et al. 2025, eq. 2"
    lossless_when: ClassVar[str] = "alpha < 0"
    reads_target: ClassVar[bool] = False
    alpha_lossless: ClassVar[float | None] = -0.5
    alpha_draft_only: ClassVar[float | None] = 1.0

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]`."""
        return d.q1.amax(dim=-1, keepdim=True) >= 1 - self.alpha
