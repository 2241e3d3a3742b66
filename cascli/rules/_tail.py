"""What rules have in common that are no choice between the models: a part that stands, and the rest from a residual.

Imports no torch until it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


def completed(accepted: Tensor, d: Dists) -> Tensor:
    """pi `[n, V]`: `accepted` (at most q), and what is rejected drawn from norm(max(0, p - q)), as in the exact test.

    TV(pi, p) = TV(p, q) minus the rejected mass, and no sampler accepts more of this pi.
    """
    from cascli.sampling import rejection

    rejected = (d.q - accepted).sum(dim=-1, keepdim=True)
    return accepted + rejected * rejection.residual(d.p, d.q)


def truncated(d: Dists, keep: Tensor) -> Tensor:
    """The target's distribution within the tokens that are kept, bool `[n, V]`; its best token always is."""
    kept = d.p * keep
    return kept / kept.sum(dim=-1, keepdim=True)


def nth_largest(probs: Tensor, n: int) -> Tensor:
    """The n-th largest probability of each row, `[..., 1]`; the smallest where there are fewer."""
    return probs.topk(min(n, probs.shape[-1]), dim=-1).values[..., -1:]
