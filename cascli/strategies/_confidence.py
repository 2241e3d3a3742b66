"""Confidence of the draft model in a whole answer, from its per-token log-probabilities and margins.

Gupta et al. 2024 (arXiv 2404.10136): Chow-Average, Chow-Sum and Chow-Quantile. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Confidence(NamedTuple):
    """What the draft model thought of each token it wrote, at temperature 1."""

    logprobs: Sequence[float]
    """log q1 of the written tokens."""
    margins: Sequence[float]
    """How far the most likely token stood above the second, as probabilities."""


def quantile(values: Sequence[float], level: float) -> float:
    """The `level`-quantile with linear interpolation; level 0 is the minimum."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def score(name: str, confidence: Confidence, level: float) -> float:
    """One number for a whole answer of at least one token; higher is more confident."""
    return SCORES[name](confidence, level)


SCORES: dict[str, Callable[[Confidence, float], float]] = {
    "mean-logprob": lambda c, _: sum(c.logprobs) / len(c.logprobs),
    "sum-logprob": lambda c, _: sum(c.logprobs),
    "quantile-logprob": lambda c, level: quantile(c.logprobs, level),
    "min-margin": lambda c, _: min(c.margins),
}
