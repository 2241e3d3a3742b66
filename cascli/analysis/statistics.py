"""Medians, percentiles and their uncertainty. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median
from typing import Literal, NamedTuple

IntervalKind = Literal["95%", "range", "no scatter"]
LEVEL = 0.95
RESAMPLES = 1000
"""Number of bootstrap resamples."""
ROUNDING = 1e-12
"""Tolerance for values that differ only by the order of operations."""
FEWEST = 6
"""Fewest values for which an interval is computed; fewer values get a range."""


class Interval(NamedTuple):
    """Two bounds, and what they are: a 95% interval, the range of a few values, or no scatter: all are equal."""

    low: float
    high: float
    kind: IntervalKind

    def around(self, ratio: float) -> Interval:
        """Return the interval of a ratio for another estimate of it: moved there, or a range extended to include it."""
        if self.kind == "95%":
            factor = ratio / math.sqrt(self.low * self.high)
            return Interval(self.low * factor, self.high * factor, self.kind)
        if self.kind == "range":
            return Interval(min(self.low, ratio), max(self.high, ratio), self.kind)
        return self


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values are, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def weighted_mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Return the mean with these weights; None if a value is unknown, or the weights add up to 0."""
    total = sum(weights)
    known = [value * weight for value, weight in zip(values, weights, strict=True) if value is not None]
    return math.fsum(known) / total if total and len(known) == len(values) else None


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return a distribution-free 95% interval of the median of independent values; None for fewer than two.

    It spans the r-th smallest to the r-th largest value, with the largest r for which the median is outside in at most
    one of twenty samples: each value is above the median with probability 1/2.
    """
    n = len(values)
    whole = span(values)
    if whole is None or whole.kind == "no scatter" or n < FEWEST:
        return whole
    outside, rank = 2 * 0.5**n, 1
    while outside + 2 * math.comb(n, rank) * 0.5**n <= 1 - LEVEL:
        outside += 2 * math.comb(n, rank) * 0.5**n
        rank += 1
    ordered = sorted(values)
    return Interval(ordered[rank - 1], ordered[-rank], "95%")


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return a 95% interval of the mean of independent scores in [0, 1]; None for fewer than two.

    Wilson's interval for scores of 0 and 1. For others Student's, with half a pseudo-score at each end of the scale: a
    few scores that are nearly equal often do not yet include the rare one that is not.
    """
    if len(values) < FEWEST:
        return span(values)
    if set(values) <= {0.0, 1.0}:
        return _wilson(sum(values), len(values))
    return _student(values, 0.0, 1.0, 0.5)


def difference_interval(values: Sequence[float]) -> Interval | None:
    """Return a 95% interval of the mean of paired differences in [-1, 1]; None for fewer than two.

    Student's, with a quarter of a pseudo-difference at each end of the scale. Differences that are all equal carry no
    information about their variance, so the result is marked "no scatter" instead.
    """
    whole = span(values)
    if whole is None or whole.kind == "no scatter" or len(values) < FEWEST:
        return whole
    return _student(values, -1.0, 1.0, 0.25)


UNSEEN = 2.0
"""Factor by which an unseen prompt's ratio may differ from the others': answers can double in calls and length."""
UNSEEN_RATE = 1.25
"""Factor by which an unseen prompt's ratio of times per token may differ: these do not double with a loop."""


def ratio_interval(groups: Sequence[Sequence[tuple[float, float]]], unseen: float = UNSEEN) -> Interval | None:
    """Return a 95% interval of a ratio of totals over prompts, each a group of pairs by seed; None for fewer than two.

    A paired bootstrap over prompts. A group counts as the mean of its pairs; their scatter over seeds is part of the
    differences between groups. The standard error is that of the log ratio over 1,000 resamples, widened for what few
    prompts hide: the variance times n / (n - 1), half a pseudo-prompt whose ratio is `unseen` times as large or small,
    and Student's quantile. Fewer than six prompts get their range, and so do prompts nearly all of which have a
    numerator of 0. No interval covers what no prompt has shown, such as a rare loop.
    """
    return _of_totals([tuple(fmean(pair[i] for pair in group) for i in (0, 1)) for group in groups], (1, -1), unseen)


def rate_ratio_interval(prompts: Sequence[tuple[float, float, float, float]]) -> Interval | None:
    """Return the interval of (a / b) / (c / d) of totals, such as two strategies' tokens over seconds.

    See `ratio_interval`. A range includes the ratio of the totals, which can be outside of all prompts' own ratios if
    the two sides have their longest answers to different prompts.
    """
    ordered = sorted(prompts)  # independent of the order in which they ended
    interval = _of_totals(ordered, (1, -1, -1, 1), UNSEEN_RATE)
    if interval is None or interval.kind != "range":
        return interval
    a, b, c, d = (math.fsum(column) for column in zip(*ordered, strict=True))
    return interval.around(a * d / (b * c))


def _of_totals(prompts: Sequence[Sequence[float]], powers: Sequence[int], unseen: float) -> Interval | None:
    """Return the interval of the product of the columns' totals, each raised to its power."""
    ratios = [_product(each, powers, 1) / _product(each, powers, -1) for each in prompts]  # exactly 1 for equals
    whole, n = span(ratios), len(prompts)
    if whole is None or whole.kind == "no scatter" or n < FEWEST:
        return whole
    import numpy as np

    columns = np.array(prompts)
    totals = columns[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].sum(axis=1)
    if totals.min() <= 0:  # nearly all prompts have a 0, so the log ratio has no finite scatter
        return whole
    scatter = float((np.log(totals) @ np.array(powers)).std()) * math.sqrt(n / (n - 1))
    error = math.hypot(scatter, math.log(unseen) * math.sqrt(0.5) / n)
    half = _t_quantile((1 + LEVEL) / 2, n - 1) * error
    middle = float(np.log(columns.sum(axis=0)) @ np.array(powers))
    return Interval(math.exp(middle - half), math.exp(middle + half), "95%")


def _product(values: Sequence[float], powers: Sequence[int], power: int) -> float:
    """Return the product of the values with this power."""
    return math.prod(value for value, each in zip(values, powers, strict=True) if each == power)


def ratio_of_totals(groups: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Return the sum of the groups' mean first values over that of their mean second values."""
    above, below = (math.fsum(fmean(pair[i] for pair in group) for group in groups) for i in (0, 1))
    return above / below


def from_scatter(middle: float, scatter: float, n: int) -> Interval:
    """Return a 95% interval around a score in [0, 1] of `n` prompts, or a difference, from its bootstrap deviation.

    Widened for what few prompts hide: the variance times n / (n - 1), and a quarter of a pseudo-prompt with the most
    distant possible score in each direction, since a rare prompt on which answers differ has often not been seen yet.
    """
    error = math.hypot(scatter * math.sqrt(n / (n - 1)), math.sqrt(0.5) / n)
    half = _t_quantile((1 + LEVEL) / 2, n - 1) * error
    return Interval(middle - half, middle + half, "95%")


def span(values: Sequence[float]) -> Interval | None:
    """Return the smallest and the largest of a few values; None for fewer than two."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    alike = math.isclose(low, high, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return Interval(low, high, "no scatter" if alike else "range")


def _wilson(successes: float, n: int) -> Interval:
    """Return Wilson's score interval of a proportion."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0), "95%")


def _student(values: Sequence[float], lowest: float, highest: float, weight: float) -> Interval:
    """Return Student's interval of the mean of the values and two more of this weight at the ends of the scale."""
    count = len(values) + 2 * weight
    middle = (math.fsum(values) + weight * (lowest + highest)) / count
    squares = math.fsum((value - middle) ** 2 for value in values)
    squares += weight * ((lowest - middle) ** 2 + (highest - middle) ** 2)
    half = _t_quantile((1 + LEVEL) / 2, len(values) - 1) * math.sqrt(squares) / count
    # The added scores also pull towards the middle of the scale, but the interval keeps the observed mean.
    seen = fmean(values)
    return Interval(max(min(middle - half, seen), lowest), min(max(middle + half, seen), highest), "95%")


def _t_quantile(share: float, freedom: int) -> float:
    """Return Student's quantile by Abramowitz and Stegun's expansion 26.7.5: three digits for freedom >= 5."""
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


__all__ = [
    "Interval",
    "IntervalKind",
    "difference_interval",
    "from_scatter",
    "mean_interval",
    "median",
    "median_interval",
    "percentile",
    "rate_ratio_interval",
    "ratio_interval",
    "ratio_of_totals",
    "span",
]
