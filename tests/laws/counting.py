"""Compare counts with a law: each must be within 6 sigma + 5 of its expectation; impossible texts must not occur."""

import math
from collections import Counter

from tests.reference.process import Law, Tokens


def allowance(prob: float, runs: int) -> float:
    """6 sigma + 5, with sigma the standard deviation of a binomial count."""
    return 6 * math.sqrt(runs * prob * (1 - prob)) + 5


def out_of_law(counts: Counter[Tokens], law: Law) -> list[str]:
    """Describe every count that the law does not explain; empty if all are within bounds."""
    runs = counts.total()
    impossible = [text for text in counts if law.get(text, 0.0) == 0]
    wrong = [f"{text} came {counts[text]} times but is impossible" for text in impossible]
    for text, prob in law.items():
        n = counts[text]
        if abs(n - runs * prob) > allowance(prob, runs):
            wrong.append(f"{text} came {n} times, expected {runs * prob:.1f} +- {allowance(prob, runs):.1f}")
    return wrong


def false_alarm_rate(law: Law, runs: int) -> float:
    """An upper bound on the probability that correct counts are flagged: Chernoff's, summed over both tails."""
    return sum(
        math.exp(-runs * divergence(min(max(share, 0.0), 1.0), prob))
        for prob in law.values()
        if 0 < prob < 1
        for share in (prob + allowance(prob, runs) / runs, prob - allowance(prob, runs) / runs)
        if 0 <= share <= 1
    )


def divergence(a: float, b: float) -> float:
    """The relative entropy of two coins."""
    return sum(x * math.log(x / y) for x, y in ((a, b), (1 - a, 1 - b)) if x > 0)
