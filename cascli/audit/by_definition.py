"""A round of speculation straight from its definition, in float64 NumPy, sharing no code with the decoder.

On a CPU, `cascli.sampling` itself decides rounds, so comparing with it would find nothing. Only the rule, which
computes pi from the distributions, is the package's own. Everything else is reimplemented here, position by position:
softmax, truncation, draws, tests of tokens (Leviathan et al. 2023, algorithm 1) and of prefixes (Sun et al. 2024,
algorithm 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cascli.rules.base import Rule
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Numbers(NamedTuple):
    """The random numbers of a round of n drafts."""

    draft: Array
    """`[n]`: draw the drafts."""
    accept: Array
    """`[n]`: test them, or the prefixes that end with them."""
    following: Array
    """`[n + 1]`: the number of a position draws the token there if exactly the drafts before it are kept."""


class Outcome(NamedTuple):
    """The number of drafts kept, and the token after them."""

    kept: int
    following: int


def decided(
    rule: Rule,
    sampling: Sampling,
    draft: Array,
    target: Array,
    numbers: Numbers,
    *,
    holds: Array | None = None,
    by_block: bool = False,
) -> Outcome:
    """Draft n tokens and decide which of them are kept.

    Args:
        rule: computes pi from the distributions.
        sampling: turns logits into distributions, at a temperature above 0.
        draft: logits `[n + 1, V]`; the last row matters only to a rule that reads q there.
        target: logits `[n + 1, V]`.
        numbers: the random numbers.
        holds: `[n + 1]`, where a rule limited to some positions applies; None means everywhere.
        by_block: test prefixes, and keep the longest that passes.
    """
    import numpy as np

    n = len(numbers.accept)
    q, p = (np.stack([truncated(row, sampling) for row in logits]) for logits in (draft, target))
    if rule.reads_base:
        q1, p1 = (np.stack([truncated(row, Sampling(1.0)) for row in logits]) for logits in (draft, target))
    else:
        q1, p1 = q, p
    pi = pi_of(rule, q, p, q1, p1)
    if holds is not None:
        pi = np.stack([lossy if applies else exact for lossy, exact, applies in zip(pi, p, holds, strict=True)])
    tokens = [drawn(q[i], numbers.draft[i]) for i in range(n)]
    kept, law = (of_prefixes if by_block else of_tokens)(pi, q, tokens, numbers.accept)
    return Outcome(kept, drawn(law, numbers.following[kept]))


def pi_of(rule: Rule, q: Array, p: Array, q1: Array, p1: Array) -> Array:
    """The rule's pi, `[n, V]` like the distributions that it is computed from."""
    pi: Array = rule.apply(Dists(*map(torch.from_numpy, (q, p, q1, p1)))).numpy()
    return pi


def truncated(logits: Array, sampling: Sampling) -> Array:
    """Probabilities `[V]` at a temperature, truncated by top-k and then by top-p."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # logits that are not numbers: what follows differs, which is a finding
        weights = np.exp((logits - logits.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(weights):
        weights[logits < np.partition(logits, -sampling.top_k)[-sampling.top_k]] = 0
    probs: Array = weights / weights.sum()
    if sampling.top_p < 1:
        order = np.argsort(-probs, kind="stable")
        probs[order[1 + np.searchsorted(probs[order].cumsum(), sampling.top_p) :]] = 0
        probs = probs / probs.sum()
    return probs


def drawn(law: Array, u: float) -> int:
    """The first token at which the law's cumulative mass exceeds a share u of its total."""
    return int((law.cumsum() > u * law.sum()).argmax())


def of_tokens(pi: Array, q: Array, tokens: list[int], u: Array) -> tuple[int, Array]:
    """The number of drafts kept before the first that fails its test, and the law of the token after them."""
    for i, token in enumerate(tokens):
        if u[i] * q[i, token] >= pi[i, token]:
            return i, above(pi[i], q[i])
    return len(tokens), pi[len(tokens)]


def of_prefixes(pi: Array, q: Array, tokens: list[int], u: Array) -> tuple[int, Array]:
    """The length of the longest prefix of drafts that passes its test, and the law of the token after it."""
    n, weight = len(tokens), 1.0
    kept, law = 0, above(pi[0], q[0]) if tokens else pi[0]
    for i, token in enumerate(tokens):
        weight = min(1.0, weight * pi[i, token] / q[i, token])
        if i + 1 == n:
            return (n, pi[n]) if u[i] < weight else (kept, law)
        scaled = weight * pi[i + 1]
        mass = float((scaled - q[i + 1]).clip(0).sum())
        if u[i] * (mass + 1 - weight) < mass or weight == 1:
            kept, law = i + 1, above(scaled, q[i + 1])
    return kept, law


def above(pi: Array, q: Array) -> Array:
    """The positive part of pi - q; pi itself if that is zero everywhere."""
    excess: Array = (pi - q).clip(0)
    return excess if excess.sum() > 0 else pi
