"""The rules that are not a plain keep-or-defer choice, each in the sampling form that its authors published.

Accept x with probability a(x), otherwise draw from s_x. What is emitted then follows
pi(v) = q(v) a(v) + sum_x q(x) (1 - a(x)) s_x(v). Everything is computed by loops in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.reference.distributions import Row, total_variation


def emitted(q: Row, accept: Row, replaced: np.ndarray) -> Row:
    """The law of accept-or-replace; row x of `replaced` `[V, V]` is s_x."""
    pi = q * accept
    for x in range(len(q)):
        pi = pi + q[x] * (1 - accept[x]) * replaced[x]
    return pi


def norm(mass: Row, otherwise: Row) -> Row:
    return mass / mass.sum() if mass.sum() > 0 else otherwise


def ratio(a: Row, b: Row) -> Row:
    """min(1, a / b); 1 where b is 0."""
    return np.array([1.0 if y == 0 else min(1.0, x / y) for x, y in zip(a, b, strict=True)])


def same(row: Row) -> np.ndarray:
    return np.tile(row, (len(row), 1))


def redrawn(q: Row, p: Row, keep: np.ndarray) -> Row:
    """A draft outside the kept set is discarded, and p is drawn from instead."""
    return emitted(q, np.where(keep, 1.0, 0.0), same(p))


def tested(q: Row, p: Row, keep: np.ndarray) -> Row:
    """A draft outside the kept set must pass the exact test; if it fails, the residual replaces it."""
    return emitted(q, np.where(keep, 1.0, ratio(p, q)), same(norm(np.maximum(p - q, 0), p)))


def among(p1: Row, top: int | None) -> np.ndarray:
    """The tokens with fewer than `top` likelier ones."""
    likelier = np.array([(p1 > mine).sum() for mine in p1])
    return likelier < (len(p1) if top is None else top)


def kept_by(name: str, q: Row, p: Row, q1: Row, p1: Row, params: dict[str, Any]) -> np.ndarray:
    """The kept set K of a token rule."""
    if name == "typical":
        return np.asarray(p > typical_bound(p, params.get("epsilon", 0.09), params.get("delta", 0.3)))
    alpha = params["alpha"]
    near = {
        "token-v1": q1 >= p1.max() - alpha,
        "token-v2": p1 >= p1.max() - alpha,
        "token-v3": p1 >= (1 - alpha) * p1.max(),
        "head": p1 >= (1 - alpha) * p1.max(),
    }
    return np.asarray(near[name] & among(p1, params.get("top")))


def token_rule(name: str, params: dict[str, Any]) -> Callable[..., Row]:
    """pi of a token rule with its options, except `where`."""
    tail = params.get("tail", "exact" if name == "head" else "cut")
    law = {"cut": redrawn, "exact": tested}[tail]
    return lambda q, p, q1, p1: law(q, p, kept_by(name, q, p, q1, p1, params))


def head(q: Row, p: Row, q1: Row, p1: Row, alpha: float) -> Row:
    return tested(q, p, p1 >= (1 - alpha) * p1.max())


def lenience(q: Row, p: Row, q1: Row, p1: Row, lenience: float, shape: str = "linear") -> Row:
    likelier = p / lenience if shape == "linear" else p**lenience
    return emitted(q, ratio(likelier, q), same(norm(np.maximum(p - q, 0), p)))


def typical(q: Row, p: Row, q1: Row, p1: Row, epsilon: float, delta: float) -> Row:
    return redrawn(q, p, p > typical_bound(p, epsilon, delta))


def typical_bound(p: Row, epsilon: float, delta: float) -> float:
    return min(epsilon, delta * math.exp(sum(x * math.log(x) for x in p if x > 0)))


def mixture(q: Row, p: Row, q1: Row, p1: Row, target_weight: float) -> Row:
    q_alone, p_alone, q1_alone, p1_alone = (np.count_nonzero(each) == 1 for each in (q, p, q1, p1))
    if q_alone and p_alone and not (q1_alone and p1_alone):
        theirs, ours = int(p.argmax()), int(q.argmax())
        mixed = target_weight * p1 + (1 - target_weight) * q1
        first, second = sorted((theirs, ours))
        return np.eye(len(q))[second if mixed[second] > mixed[first] else first]
    return target_weight * p + (1 - target_weight) * q


def cactus(q: Row, p: Row, q1: Row, p1: Row, delta: float) -> Row:
    size = len(q)
    accept, replaced = np.ones(size), np.zeros((size, size))
    for x in range(size):
        raised = min(1.0, p[x] + math.sqrt(2 * delta * p[x] * (1 - p[x]))) if p[x] < 1 else 1.0
        scaled = p * ((1 - raised) / (1 - p[x])) if p[x] < 1 else p.copy()
        scaled[x] = raised
        accept[x] = 1.0 if q[x] == 0 else min(1.0, raised / q[x])
        replaced[x] = norm(np.maximum(scaled - q, 0), p)
    return emitted(q, accept, replaced)


def mentored(q: Row, p: Row, share: float) -> Row:
    """min(max(q, p / B), p / A), with 1 / B found by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(np.maximum(q, middle * p), p / share).sum() < 1 else (low, middle)
    return np.minimum(np.maximum(q, high * p), p / share)


def kl(a: Row, b: Row) -> float:
    return sum(x * (math.log(x / y) if y > 0 else math.inf) for x, y in zip(a, b, strict=True) if x > 0)


def entropy(a: Row) -> float:
    return -sum(x * math.log(x) for x in a if x > 0)


def fuzzy_score(q1: Row, p1: Row, threshold: float, divergence: str) -> float:
    """A score, at least 0 where the draft model is kept."""
    middle = (q1 + p1) / 2
    apart = {
        "tv": np.maximum(p1 - q1, 0).sum(),
        "kl": kl(p1, q1),
        "js": (kl(p1, middle) + kl(q1, middle)) / 2,
    }
    return threshold - float(apart[divergence])


def truncated(p: Row, keep: np.ndarray) -> Row:
    return np.where(keep, p, 0) / p[keep].sum()


def fuzzy(q: Row, p: Row, q1: Row, p1: Row, threshold: float, divergence: str = "js") -> Row:
    return q if fuzzy_score(q1, p1, threshold, divergence) >= 0 else p


def bild(q: Row, p: Row, q1: Row, p1: Row, alpha: float) -> Row:
    return q if -math.log(p1[int(q1.argmax())]) <= alpha else p


def opt_log(q: Row, p: Row, q1: Row, p1: Row, alpha: float) -> Row:
    return q if entropy(q1) <= entropy(p1) + alpha * total_variation(p, q) else p


def mentored_at(q: Row, p: Row, q1: Row, p1: Row, alpha: float) -> Row:
    return mentored(q, p, 1 - alpha)


def min_p(q: Row, p: Row, q1: Row, p1: Row, alpha: float) -> Row:
    return truncated(p, p1 >= (1 - alpha) * p1.max())


def top_k(q: Row, p: Row, q1: Row, p1: Row, n: int) -> Row:
    return truncated(p, among(p1, n))


def top_p(q: Row, p: Row, q1: Row, p1: Row, mass: float) -> Row:
    """Keep each token whose likelier tokens together have less than `mass`; assumes that there are no ties."""
    return truncated(p, np.array([p1[p1 > mine].sum() < mass for mine in p1]))


def eta(q: Row, p: Row, q1: Row, p1: Row, epsilon: float, delta: float) -> Row:
    return truncated(p, p > typical_bound(p, epsilon, delta))


FAMILY: dict[str, Callable[..., Row]] = {
    "head": head,
    "mentored": mentored_at,
    "lenience": lenience,
    "mixture": mixture,
    "typical": typical,
    "fuzzy": fuzzy,
    "bild": bild,
    "opt-log": opt_log,
    "cactus": cactus,
    "min-p": min_p,
    "top-k": top_k,
    "top-p": top_p,
    "eta": eta,
}
"""pi of every rule beyond the paper's six, by name."""
