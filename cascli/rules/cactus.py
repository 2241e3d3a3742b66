"""Raise the target's probability of the drafted token as far as a budget allows, and test against that.

For a drafted x: h = min(1, p(x) + sqrt(2 delta p(x) (1 - p(x)))), the others scaled by c = (1 - h) / (1 - p(x)); accept
with min(1, h / q(x)), else draw from norm(max(0, h^x - q)). The budget bounds h^x for each draft, not the emitted pi:
pi(v) = min(q, h)(v) + sum over x with c_x > q(v) / p(v) of w_x (c_x p(v) - q(v)), w_x = max(0, q(x) - h(x)) / N(c_x),
N(c) = sum_v max(0, c p(v) - q(v)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.rules.base import Dial, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


@dataclass(frozen=True)
class Cactus(Rule):
    """Test each draft against the target's distribution with that draft's probability raised."""

    formula: ClassVar[str] = (
        "accept min(1, h / q), h = min(1, p + sqrt(2 delta p (1 - p))), else norm(max(0, h^x - q)); pi in closed form"
    )
    source: ClassVar[str] = "Cactus, ICLR 2026 (MANGA-UOFA/Cactus)"
    lossless_when: ClassVar[str] = "delta = 0"
    greedy: ClassVar[str] = "exact"
    relatives: ClassVar[str] = "mentored, whose budget holds for what is emitted"
    reads_base: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Dial("delta", 0.0, 1e9, "log", draft_only=False)

    delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def apply(self, d: Dists) -> Tensor:
        """The distribution of that sampler's output, by sorting the ratios q / p and the scales c."""
        import torch

        q, p = d.q.double(), d.p.double()
        # One root per factor, since 2 delta may overflow, and infinity times 0 is undefined.
        raised = (p + math.sqrt(2) * math.sqrt(self.delta) * (p * (1 - p)).clamp_min(0).sqrt()).clamp_max(1)
        scale = ((1 - raised) / (1 - p).masked_fill(p >= 1, 1.0)).where(p < 1, torch.ones_like(p))
        ratios, order = (q / p.masked_fill(p <= 0, 1.0)).where(p > 0, torch.inf).sort(dim=-1)
        ahead = _sums(p.gather(-1, order)), _sums(q.gather(-1, order))
        below = torch.searchsorted(ratios, scale)
        room = scale * ahead[0].gather(-1, below) - ahead[1].gather(-1, below)
        rejected = (q - raised).clamp_min(0)
        weight = (rejected / room.masked_fill(room <= 0, 1.0)).where(room > 0, 0.0)
        scales, place = scale.sort(dim=-1)
        weights = weight.gather(-1, place)
        of_scale, plain = _sums(weights * scales), _sums(weights)
        at = torch.searchsorted(scales, (q / p.masked_fill(p <= 0, 1.0)).where(p > 0, torch.inf), right=True)
        more = p * (of_scale[..., -1:] - of_scale.gather(-1, at)) - q * (plain[..., -1:] - plain.gather(-1, at))
        return (q.minimum(raised) + more.clamp_min(0)).to(d.q.dtype)


def _sums(values: Tensor) -> Tensor:
    """Prefix sums, `[n, V + 1]`: entry i is the sum of the first i values."""
    import torch

    return torch.nn.functional.pad(values.cumsum(dim=-1), (1, 0))
