"""How long a step of each model takes, by how many tokens it reads: what speculation's speed is made of. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from cascli.statistics import median, percentile
from cascli.trace import Data


class Timing(Data):
    """Several measurements of one thing, in seconds."""

    median: float
    low: float
    """25th percentile."""
    high: float
    """75th percentile."""

    @property
    def spread(self) -> float:
        """Interquartile range over median: how noisy the measurement was."""
        return (self.high - self.low) / self.median


def timing(seconds: Sequence[float]) -> Timing:
    """Summarise measurements."""
    return Timing(median=median(seconds), low=percentile(seconds, 0.25), high=percentile(seconds, 0.75))


class Profile(Data):
    """Step times of both models after a context of some length."""

    context: int
    draft: dict[int, Timing] = Field(min_length=1)
    """By the number of tokens that one call reads; 1 is always there."""
    target: dict[int, Timing] = Field(min_length=1)

    @property
    def c(self) -> float:
        """A draft step over a target step."""
        return self.draft[1].median / self.target[1].median

    def v(self, block: int) -> float:
        """A target call over `block` tokens, over a target step; see `interpolated`."""
        times = {n: each.median for n, each in self.target.items()}
        return interpolated(times, block) / times[1]

    @property
    def spread(self) -> float:
        """The median spread of all its timings."""
        return median([each.spread for each in (*self.draft.values(), *self.target.values())])


def interpolated(values: Mapping[int, float], at: int) -> float:
    """The value at a point: on the line between its neighbours, and beyond the last one in proportion to `at`.

    Beyond what was measured a block is taken to cost as much a token as the longest one that was measured.
    """
    if at in values:
        return values[at]
    known = sorted(values)
    if at > known[-1]:
        return values[known[-1]] * at / known[-1]
    below = max((point for point in known if point < at), default=known[0])
    above = min(point for point in known if point > at)
    share = (at - below) / (above - below) if above > below else 0.0
    return values[below] + share * (values[above] - values[below])
