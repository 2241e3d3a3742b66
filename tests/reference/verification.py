"""One verification step: acceptance, residual, and the exact law of what it emits."""

import numpy as np

from tests.reference.distributions import Row


def acceptance(pi: Row, q: Row, token: int) -> float:
    """min(1, pi(x) / q(x)) for a token x that was drawn from q, so q(x) > 0."""
    return min(1.0, float(pi[token]) / float(q[token]))


def residual(pi: Row, q: Row) -> Row:
    """norm(max(0, pi - q)); pi itself where pi nowhere exceeds q."""
    excess = np.maximum(0.0, pi - q)
    total = excess.sum()
    return excess / total if total > 0 else pi


def step_law(pi: Row, q: Row) -> Row:
    """The law of the token that one step emits: accepted mass + P(reject) * residual. Equals pi."""
    drawable = [v for v in range(len(q)) if q[v] > 0]
    law = np.zeros(len(q))
    rejected = 0.0
    for token in drawable:
        accept = acceptance(pi, q, token)
        law[token] += q[token] * accept
        rejected += q[token] * (1 - accept)
    return law + rejected * residual(pi, q)
