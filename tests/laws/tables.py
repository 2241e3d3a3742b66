"""Imaginary models: distributions that depend on the whole prefix, and rules as functions of one pair."""

from functools import cache

import numpy as np

from tests.reference.distributions import softmax, warp
from tests.reference.process import Pair, Tables, Target, Tokens
from tests.reference.rules import RULES, exact

KINDS = ["warped", "plain", "equal", "disjoint", "sparse"]


def target(name: str, alpha: float = 0.0) -> Target:
    """pi as a function of a pair, by the reference; an unknown name means plain speculative decoding."""
    rule = RULES.get(name, exact)
    return lambda pair: rule(*pair, alpha).pi


def random_tables(size: int, seed: int, kind: str = "warped") -> Tables:
    """Two models; the kinds are temperature and top-p, neither, one model twice, nothing in common, and zeros."""

    @cache
    def tables(prefix: Tokens) -> Pair:
        rng = np.random.default_rng([seed, *prefix, len(prefix)])
        x, y = 1.5 * rng.normal(size=(2, size))
        if kind == "equal":
            y = x
        elif kind == "disjoint":
            left = np.arange(size) < (size + 1) // 2
            x, y = np.where(left, x, -np.inf), np.where(left, -np.inf, y)
        elif kind == "sparse":
            x[rng.integers(size)] = y[rng.integers(size)] = -np.inf
        settings = {"temperature": 0.7, "top_p": 0.8} if kind == "warped" else {}
        return Pair(warp(x, **settings), warp(y, **settings), softmax(x), softmax(y))

    return tables
