"""Helpers for rules that do not choose between the models: keep part of a distribution and complete the rest.

Imports torch only when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


def completed(accepted: Tensor, d: Dists) -> Tensor:
    """pi `[n, V]`: `accepted` (at most q), plus the rejected mass on norm(max(0, p - q)), as in the exact test.

    TV(pi, p) = TV(p, q) minus the rejected mass, and no sampler of this pi accepts more.
    """
    from cascli.sampling import rejection

    rejected = (d.q - accepted).sum(dim=-1, keepdim=True)
    return accepted + rejected * rejection.residual(d.p, d.q)


def truncated(d: Dists, keep: Tensor) -> Tensor:
    """The target's distribution restricted to the tokens in `keep`, bool `[n, V]`, which always include its best."""
    kept = d.p * keep
    return kept / kept.sum(dim=-1, keepdim=True)


def nth_largest(probs: Tensor, n: int) -> Tensor:
    """The n-th largest probability of each row, `[..., 1]`; the smallest if there are fewer."""
    return probs.topk(min(n, probs.shape[-1]), dim=-1).values[..., -1:]
