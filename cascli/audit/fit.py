"""How surprising are counts as a whole? A likelihood-ratio test whose false-alarm rate is bounded, not approximated.

A fault that moves a little mass at each of many texts leaves every single count within its 6 sigma. G, twice the
logarithm of the likelihood ratio of the counts against their law, adds such differences up. It is computed for prefixes
of every length, because a fault in the first token is diluted by every token after it.

With counts of ten, chi-square asymptotics say nothing about alarms at 1e-7. Multinomial counts are independent Poisson
counts conditioned on their total, so the moment generating function of G is computed exactly: it is a coefficient of a
product of power series, one per cell. Chernoff's bound turns it into a bound on the tail that holds for every law and
number of runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import torch

from cascli.audit.tables import Text

ALARM = 7
"""Powers of ten: counts of a prefix length fail if correct code produces them with a probability of at most 1e-7."""
LEAST = 10.0
"""Minimum expected count of a cell. The bound holds for any; cells for rarer texts cost more power than they add."""
TILTS = tuple(tenth / 10 for tenth in range(1, 10))
"""Exponents tried in Chernoff's bound, which uses the best; the function is infinite at 1 and above."""
WRAP = 4096
"""Length of the transforms. Totals off by a multiple of it count as the right one, which only raises the bound."""


def surprise(counts: Counter[Text], law: Mapping[Text, float], runs: int) -> tuple[float, list[int]]:
    """How surprising counts of texts are, in powers of ten, and the number of cells of each prefix length.

    For every x above 0 and each prefix length, correct counts have a surprise of x or more with a probability of at
    most 10^-x. Infinite if an impossible text was written.
    """
    if any(law.get(text, 0.0) <= 0 for text in counts):
        return math.inf, []
    worst, sizes = 0.0, []
    for length in range(1, len(next(iter(law))) + 1):
        seen, expected = pooled(*_prefixes(counts, law, length), runs)
        worst = max(worst, -log_tail(likelihood_ratio(seen, expected), tuple(expected), runs) / math.log(10))
        sizes.append(len(expected))
    return worst, sizes


def false_alarm(lengths: int) -> float:
    """Upper bound on the probability that correct counts, over this many prefix lengths, surprise by ALARM or more."""
    return lengths * 10.0**-ALARM


def _prefixes(counts: Counter[Text], law: Mapping[Text, float], length: int) -> tuple[Counter[Text], dict[Text, float]]:
    seen: Counter[Text] = Counter()
    for text, count in counts.items():
        seen[text[:length]] += count
    masses: dict[Text, float] = {}
    for text, mass in law.items():
        masses[text[:length]] = masses.get(text[:length], 0.0) + mass
    return seen, masses


def pooled(counts: Counter[Text], law: Mapping[Text, float], runs: int) -> tuple[list[int], list[float]]:
    """Observed and expected counts of cells of at least LEAST expected: rare texts share one, by the law alone."""
    seen, expected = [0], [0.0]
    for text in sorted((text for text in law if law[text] > 0), key=lambda text: (law[text], text)):
        if expected[-1] >= LEAST:  # later texts are no rarer, so only a law of few runs has a cell below LEAST
            seen.append(0)
            expected.append(0.0)
        seen[-1] += counts[text]
        expected[-1] += runs * law[text]
    if len(seen) > 1 and expected[-1] < LEAST:
        seen[-2:], expected[-2:] = [sum(seen[-2:])], [sum(expected[-2:])]
    return seen, expected


def likelihood_ratio(seen: list[int], expected: list[float]) -> float:
    """G / 2 of counts: the sum of x log(x / m) - x + m, in nats."""
    return math.fsum((x * math.log(x / m) if x else 0.0) - x + m for x, m in zip(seen, expected, strict=True))


def log_tail(value: float, expected: tuple[float, ...], runs: int) -> float:
    """An upper bound, in nats, on the log of the probability that G / 2 of correct counts is `value` or more."""
    moments = zip(TILTS, log_moments(expected, runs), strict=True)
    return min(0.0, *(moment - tilt * value for tilt, moment in moments))


@lru_cache(maxsize=64)  # strategies of one rule share their law
def log_moments(expected: tuple[float, ...], runs: int) -> tuple[float, ...]:
    """The log of the mean of exp(tilt G / 2) over `runs` correct draws, or slightly more (see WRAP), for every tilt."""
    mean, count = torch.tensor(expected, dtype=torch.float64).unsqueeze(1), torch.arange(runs + 1, dtype=torch.float64)
    poisson = torch.special.xlogy(count, mean) - mean - torch.lgamma(count + 1)
    ratio = torch.special.xlogy(count, count) - torch.special.xlogy(count, mean) - count + mean
    log_total = runs * math.log(runs) - runs - math.lgamma(runs + 1)
    padding = -(runs + 1) % WRAP
    moments = []
    for tilt in TILTS:
        weights = torch.nn.functional.pad((poisson + tilt * ratio).exp(), (0, padding))
        series = weights.view(len(expected), -1, WRAP).sum(dim=1)
        scale = series.sum(dim=1, keepdim=True)
        product = torch.fft.irfft(torch.fft.rfft(series / scale).prod(dim=0), n=WRAP)
        moments.append(float(product[runs % WRAP].log() + scale.log().sum()) - log_total)
    return tuple(moments)
