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
    """The target's distribution restricted to the tokens in `keep`, bool `[n, V]`, and its best one.

    A test of p1 may leave out the best token of p: rounding can make their probabilities equal at temperature 1.
    """
    kept = d.p * keep.scatter(-1, d.likeliest("p"), True)
    return kept / kept.sum(dim=-1, keepdim=True)
