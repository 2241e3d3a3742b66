"""Logits to probabilities, and the few operations on distributions that everything else is built on.

Rows are positions, columns are tokens. Arithmetic is float32 or wider whatever the models run in;
float64 stays float64. Nothing here reads a value back to the host.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from cascli.kernels.layout import NEGLIGIBLE
from cascli.sampling.parameters import Sampling

Which = Literal["q", "p", "q1", "p1"]
"""One of the four distributions of a `Dists`."""
Divergence = Literal["js", "kl", "tv"]
"""Jensen-Shannon, KL(p1 || q1), both in nats, or total variation."""


class Dists(NamedTuple):
    """Next-token distributions of both models at n positions, each `[n, V]`.

    `q`, `p` (draft, target) are warped by temperature, top-k and top-p and are what tokens are drawn
    from; `q1`, `p1` are at temperature 1 without truncation and are what deferral rules test.
    """

    q: Tensor
    p: Tensor
    q1: Tensor
    p1: Tensor

    @classmethod
    def of_logits(cls, draft: Tensor, target: Tensor, sampling: Sampling) -> Self:
        """From both models' logits, `[n, V]`."""
        return cls(warp(draft, sampling), warp(target, sampling), base(draft), base(target))

    def disagreement(self) -> Tensor:
        """TV(q, p), `[n, 1]`."""
        return total_variation(self.p, self.q).unsqueeze(-1)

    def entropy(self, of: Which) -> Tensor:
        """Entropy of one of them in nats, `[n, 1]`; a probability of 0 contributes 0, without an added epsilon."""
        return torch.special.entr(self.per_token(of)).sum(dim=-1, keepdim=True)

    def divergence(self, by: Divergence) -> Tensor:
        """Divergence between q1 and p1, `[n, 1]`; kl is infinite where p1 has mass and q1 has none."""
        q, p = self.q1, self.p1
        if by == "tv":
            return total_variation(p, q).unsqueeze(-1)
        if by == "kl":
            return _kl(p, q)
        middle = (p + q) / 2
        return (_kl(p, middle) + _kl(q, middle)) / 2

    def per_token(self, of: Which) -> Tensor:
        """Probability of a single token of each column of one of them, `[n, V]`, for comparisons with a threshold."""
        probs: Tensor = getattr(self, of)
        return probs

    def best(self, of: Which) -> Tensor:
        """Largest probability of one of them, `[n, 1]`."""
        return self.per_token(of).amax(dim=-1, keepdim=True)

    def likeliest(self, of: Which) -> Tensor:
        """Column of the likeliest token of one of them, the first of equals, `[n, 1]`."""
        return self.per_token(of).argmax(dim=-1, keepdim=True)

    def nth_largest(self, of: Which, n: int) -> Tensor:
        """The n-th largest probability of one of them, `[n, 1]`; the smallest if there are fewer."""
        probs = self.per_token(of)
        return probs.topk(min(n, probs.shape[-1]), dim=-1).values[..., -1:]


def wide(logits: Tensor) -> Tensor:
    """Logits in at least float32: with fewer bits, sums over a vocabulary are meaningless."""
    return logits if logits.dtype == torch.float64 else logits.float()


def base(logits: Tensor) -> Tensor:
    """Probabilities `[n, V]` at temperature 1 without truncation."""
    return torch.softmax(wide(logits), dim=-1)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities `[n, V]` after temperature, top-k and top-p; temperature 0 is one-hot at the argmax.

    Top-k keeps ties with the k-th largest logit; top-p keeps the smallest set of most likely tokens
    whose mass reaches `top_p`, at least one.
    """
    logits = wide(logits)
    if sampling.temperature == 0:
        top = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, top, 1.0)
    # Shift the largest logit to 0 first: dividing by a small temperature then overflows to -inf, not to NaN.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    return torch.softmax(logits, dim=-1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set the logits outside the smallest set of mass `top_p` to -inf."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = torch.softmax(ordered, dim=-1)
    before = mass.cumsum(dim=-1) - mass
    drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    drop.scatter_(-1, order[..., :1], False)
    return logits.masked_fill(drop, -torch.inf)


def sample(probs: Tensor, u: Tensor) -> Tensor:
    """Draw token ids `[...]` from `probs` `[..., V]` by inverting the CDF at `u` `[...]` in [0, 1).

    The CDF is summed in float64, so that rare tokens of a large vocabulary keep their probability;
    a token of probability 0 is never drawn. Rows need not be normalised.
    """
    cdf = probs.double().cumsum(dim=-1)
    total = cdf[..., -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    point = torch.minimum(u.to(cdf).unsqueeze(-1) * total, below)
    # Clamped for rows of NaN, which the session reports: an out-of-range id would destroy the CUDA context.
    return torch.searchsorted(cdf, point, right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)


def at(rows: Tensor, tokens: Tensor) -> Tensor:
    """The entry `[n]` of each row of `[n, V]` at its token `[n]`."""
    return rows.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def mass(rows: Tensor, where: Tensor) -> Tensor:
    """The mass `[n]` of distributions `[n, V]` on the tokens of a mask `[n, V]`; if it is `[n, 1]`, exactly 0 or 1."""
    return where[..., 0].to(rows.dtype) if where.shape[-1] == 1 else (rows * where).sum(dim=-1)


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    """Total variation `[...]` between distributions `[..., V]`: the mass that `a` has above `b`."""
    return (a - b).clamp_min(0).sum(dim=-1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Common mass `[...]` of distributions `[..., V]`: the chance that a draft from one passes the other's check.

    Rounding can push it above 1, where it is clamped.
    """
    return torch.minimum(a, b).sum(dim=-1).clamp_max(1)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) in nats, `[n, 1]`."""
    return (a.xlogy(a) - a.xlogy(b)).sum(dim=-1, keepdim=True)


def divergence(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """KL(a || b) in nats and the largest a / b, both `[...]`, between distributions `[..., V]`.

    Both are infinite where `a` has a token that `b` lacks. Tokens whose probability in `a` is at most `NEGLIGIBLE` are
    ignored: float32 may round such small probabilities in `b` to 0.
    """
    ratio = (a / b).where(a > NEGLIGIBLE, 0.0)
    return a.xlogy(ratio).where(a > NEGLIGIBLE, 0.0).sum(dim=-1).clamp_min(0), ratio.amax(dim=-1)


def regret(logits: Tensor, tokens: Tensor) -> Tensor:
    """How much less likely tokens `[n]` are than the best under logits `[n, V]`: log max p1 - log p1(x), in nats."""
    return logits.amax(dim=-1).double() - at(logits, tokens).double()
