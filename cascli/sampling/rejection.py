"""Acceptance, residual and bonus: the one place where the mathematics of speculation lives.

Drafted tokens come from `q`; the output must follow `pi`, the distribution that the strategy imitates
(pi = p for lossless speculative decoding, a mixture chosen by a deferral rule for a speculative
cascade). Accept a drafted x with probability min(1, pi(x) / q(x)); at the first rejection draw from
norm(max(0, pi - q)); if every draft was kept, draw a bonus token from pi itself at the next position.
Every emitted token then follows pi exactly (Leviathan et al. 2023, app. A.1; Narasimhan et al. 2025,
algorithm 4). Random numbers are arguments; nothing here reads a value back to the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascli.sampling import distributions


class Verification(NamedTuple):
    """The outcome of one round over k drafted tokens, all on the models' device."""

    accept_prob: Tensor
    """Probability `[k]` with which each drafted token would be kept."""
    accepted: Tensor
    """Outcome `[k]` of each token's own test; only those before the first failure count."""
    num_accepted: Tensor
    """How many drafted tokens stand: the length of the leading run of passed tests (0-dim)."""
    next_token: Tensor
    """The residual or bonus token that follows them (0-dim)."""


def acceptance(pi: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """min(1, pi(x) / q(x)) `[k]` for drafted tokens `[k]`, `pi` and `q` being `[k, V]`."""
    return (distributions.at(pi, drafted) / distributions.at(q, drafted)).clamp(max=1.0)


def residual(pi: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, pi - q)) for rows `[n, V]`; where nothing is left over, pi itself.

    An empty residual has probability 0 of being needed; it is met only when rounding rejects a token.
    """
    excess = (pi - q).clamp_min(0)
    mass = excess.sum(dim=-1, keepdim=True)
    empty = mass <= 0
    return torch.where(empty, pi, excess / mass.masked_fill(empty, 1.0))


def verify_block(pi: Tensor, q: Tensor, drafted: Tensor, u_accept: Tensor, u_next: Tensor) -> Verification:
    """Decide one round.

    Args:
        pi: `[k + 1, V]`, what the output must follow at each drafted position and at the one after.
        q: `[k, V]`, the very distributions that the drafted tokens were drawn from.
        drafted: `[k]` token ids; k may be 0.
        u_accept: `[k]` uniforms, one acceptance test each.
        u_next: `[k + 1]` uniforms; entry n is used if exactly n drafted tokens are kept.
    """
    k = drafted.shape[0]
    accept_prob = acceptance(pi[:k], q, drafted)
    accepted = u_accept < accept_prob
    num_accepted = accepted.long().cumprod(dim=0).sum()
    laws = torch.cat([residual(pi[:k], q), pi[k:]])
    law = laws.index_select(0, num_accepted.unsqueeze(0))
    u = u_next.index_select(0, num_accepted.unsqueeze(0))
    return Verification(accept_prob, accepted, num_accepted, distributions.sample(law, u)[0])
