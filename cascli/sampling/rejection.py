"""Acceptance, residual and bonus: the mathematics of speculation, in one place.

Drafted tokens come from `q`; the output must follow `pi`, the distribution that the strategy imitates
(pi = p for lossless speculative decoding, a mixture chosen by a deferral rule for a speculative
cascade). Accept a drafted x with probability min(1, pi(x) / q(x)); at the first rejection draw from
norm(max(0, pi - q)); if every draft was kept, draw a bonus token from pi itself at the next position.
Every emitted token then follows pi exactly (Leviathan et al. 2023, app. A.1; Narasimhan et al. 2025,
algorithm 4). `verify_prefixes` is the other exact method: it tests prefixes of the block instead of tokens, and
keeps more drafts. Random numbers are arguments; nothing here reads a value back to the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascli.sampling import distributions


class Verification(NamedTuple):
    """The outcome of one round over k drafted tokens, all on the models' device."""

    accept_prob: Tensor
    """Probability `[k]` of passing each test: that of a drafted token, or of the prefix that ends with it."""
    accepted: Tensor
    """Outcome `[k]` of each test. For tokens, those before the first failure count; for prefixes, the last pass."""
    num_accepted: Tensor
    """Number of drafted tokens that are kept (0-dim)."""
    next_token: Tensor
    """The residual or bonus token that follows them (0-dim)."""


def acceptance(pi: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """min(1, pi(x) / q(x)) `[k]` for drafted tokens `[k]`, with `pi` and `q` `[k, V]`."""
    return (distributions.at(pi, drafted) / distributions.at(q, drafted)).clamp(max=1.0)


def residual(pi: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, pi - q)) for rows `[n, V]`; where nothing is left over, pi itself.

    An empty residual is needed with probability 0; it occurs only when rounding rejects a token.
    """
    excess = (pi - q).clamp_min(0)
    mass = excess.sum(dim=-1, keepdim=True)
    empty = mass <= 0
    return torch.where(empty, pi, excess / mass.masked_fill(empty, 1.0))


def verify_block(pi: Tensor, q: Tensor, drafted: Tensor, u_accept: Tensor, u_next: Tensor) -> Verification:
    """Decide one round token by token: the drafts before the first failure are kept.

    Args:
        pi: `[k + 1, V]`, what the output must follow at each drafted position and at the one after.
        q: `[k, V]`, the exact distributions that the drafted tokens were drawn from.
        drafted: `[k]` token ids; k may be 0.
        u_accept: `[k]` uniforms, one per acceptance test.
        u_next: `[k + 1]` uniforms; entry n is used if exactly n drafted tokens are kept.
    """
    k = drafted.shape[0]
    accept_prob = acceptance(pi[:k], q, drafted)
    accepted = u_accept < accept_prob
    num_accepted = accepted.long().cumprod(dim=0).sum()
    laws = torch.cat([residual(pi[:k], q), pi[k:]])
    return Verification(accept_prob, accepted, num_accepted, _next(laws, num_accepted, u_next))


def prefix_weights(pi: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """p_i of the prefixes of 0 to k drafted tokens `[k + 1]`: p_0 = 1, p_i = min(1, p_{i-1} pi(x_i) / q(x_i)).

    p_i is the probability that a prefix is kept given its own tokens alone, whatever is drafted after them.
    """
    weights = [pi.new_ones(())]
    for ratio in (distributions.at(pi, drafted) / distributions.at(q, drafted)).unbind():
        weights.append((weights[-1] * ratio).clamp(max=1.0))
    return torch.stack(weights)


def prefix_tests(pi: Tensor, q: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """Pass probability `[k]` of each prefix of 1 to k drafts, and the law `[k + 1, V]` of the token after 0 to k.

    A prefix of i < k tokens passes with h_i = S_i / (S_i + 1 - p_i), where S_i is the mass of max(0, p_i pi - q) at the
    position after it, whose normalised form is the law there. The whole block passes with h_k = p_k. Where p_i is 1, so
    is h_i.
    """
    k = drafted.shape[0]
    weights = prefix_weights(pi[:k], q, drafted)
    scaled = weights[:k, None] * pi[:k]
    excess = (scaled - q).clamp_min(0).sum(dim=-1)
    lacking = excess + (1 - weights[:k])  # bit-identical to `excess` where the weight is 1
    shorter = torch.where(lacking > 0, excess / lacking, 1.0)
    return torch.cat([shorter, weights[k:]])[1:], torch.cat([residual(scaled, q), pi[k:]])


def verify_prefixes(pi: Tensor, q: Tensor, drafted: Tensor, u_accept: Tensor, u_next: Tensor) -> Verification:
    """Decide one round by block verification: each prefix has its own test, and the longest that passes is kept.

    A token whose own prefix fails is kept if a longer one passes. The output follows pi, and on average at least as
    many drafts are kept as by `verify_block`; exactly as many with k = 1, at temperature 0, or where q is one-hot (Sun
    et al. 2024, Block verification accelerates speculative decoding, algorithm 2). Unlike in `verify_block`, what is
    kept depends on the drafts after it, so their uniforms must not be used for another decision.

    Args: those of `verify_block`; `u_accept[i - 1]` tests the prefix of i tokens.
    """
    passing, laws = prefix_tests(pi, q, drafted)
    passed = u_accept < passing
    num_accepted = passed.flip(0).long().cumsum(dim=0).clamp(max=1).sum()
    return Verification(passing, passed, num_accepted, _next(laws, num_accepted, u_next))


def _next(laws: Tensor, num_accepted: Tensor, u_next: Tensor) -> Tensor:
    """The token (0-dim) after the kept ones, whose number indexes `laws` `[k + 1, V]` and `u_next` `[k + 1]`."""
    kept = num_accepted.unsqueeze(0)
    return distributions.sample(laws.index_select(0, kept), u_next.index_select(0, kept))[0]
