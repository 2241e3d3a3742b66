"""Every deferral rule as the distribution pi that it makes the strategy sample from.

q and p are warped; q1 and p1 are at temperature 1 without truncation, and only they are compared with
thresholds (TV in eq. 10 is on the warped pair). Each rule is one score per position [1] or per token [V]: the
draft model is kept where the score is >= 0. Rounding may decide where a score is near 0, so tests can skip
those comparisons.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.reference.distributions import Row, total_variation


class Judged(NamedTuple):
    """pi [V]; defer and score, each [1] for whole-distribution rules or [V] for token rules."""

    pi: Row
    defer: np.ndarray
    score: np.ndarray


def mixture(q: Row, p: Row, defer: np.ndarray) -> Row:
    """pi from the deferrals: [1] chooses p or q as a whole; [V] is the token-specific target.

    pi(v) = q(v) keep(v) + p(v) * sum over deferred u of q(u): draw from q, and draw again from p if deferred.
    """
    if len(defer) == 1:
        return p if defer[0] else q
    return np.where(defer, 0.0, q) + p * q[defer].sum()


def judge(q: Row, p: Row, score: np.ndarray | float) -> Judged:
    """Defer where the score is negative."""
    score = np.atleast_1d(score)
    return Judged(mixture(q, p, score < 0), score < 0, score)


def chow(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 2: keep the draft iff max q >= 1 - a."""
    return judge(q, p, q1.max() - (1 - a))


def diff(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 5: keep the draft iff max q >= max p - a."""
    return judge(q, p, q1.max() - (p1.max() - a))


def opt(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 10: keep the draft iff max q >= max p - a TV(p, q)."""
    return judge(q, p, q1.max() - (p1.max() - a * total_variation(p, q)))


def token_v1(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 13: keep the token iff q(v) >= max p - a."""
    return judge(q, p, q1 - (p1.max() - a))


def token_v2(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 14: keep the token iff p(v) >= max p - a."""
    return judge(q, p, p1 - (p1.max() - a))


def token_v3(q: Row, p: Row, q1: Row, p1: Row, a: float) -> Judged:
    """Eq. 15: keep the token iff p(v) >= (1 - a) max p."""
    return judge(q, p, p1 - (1 - a) * p1.max())


def exact(q: Row, p: Row, q1: Row, p1: Row, a: float = 0.0) -> Judged:
    """Plain speculative decoding: pi = p."""
    return judge(q, p, -1.0)


Rule = Callable[[Row, Row, Row, Row, float], Judged]
RULES: dict[str, Rule] = {
    "chow": chow,
    "diff": diff,
    "opt": opt,
    "token-v1": token_v1,
    "token-v2": token_v2,
    "token-v3": token_v3,
}
