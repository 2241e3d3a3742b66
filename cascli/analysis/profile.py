"""Step times of each model by the number of tokens read, which determine speculation's speed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from cascli.analysis.statistics import median, percentile
from cascli.trace import Data, ExitInfo


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

    def times(self, factor: float) -> Timing:
        """Return the timing multiplied by a factor."""
        return Timing(median=self.median * factor, low=self.low * factor, high=self.high * factor)


def timing(seconds: Sequence[float]) -> Timing:
    """Summarise measurements."""
    return Timing(median=median(seconds), low=percentile(seconds, 0.25), high=percentile(seconds, 0.75))


class Profile(Data):
    """Step times of both models after a context of some length."""

    context: int
    batch_size: int = 1
    """Number of texts per call, each with the same number of tokens; times are those of the whole batch."""
    draft: dict[int, Timing]
    """Draft model calls by the number of tokens read; always includes 1, unless there is no draft model."""
    target: dict[int, Timing] = Field(min_length=1)
    exits: dict[int, Timing] = Field(default_factory=dict)
    """One token through the target's first layers and its head, by the number of layers; empty if not timed."""

    @property
    def c(self) -> float:
        """Time of a draft step over that of a target step; 0 without a draft model."""
        return self.draft[1].median / self.target[1].median if self.draft else 0.0

    @property
    def longest(self) -> int:
        """Longest block for which a target call was timed."""
        return max(self.target)

    def v(self, block: int) -> float:
        """Return the time of a target call over `block` tokens, over a target step; extrapolated beyond `longest`."""
        times = {n: each.median for n, each in self.target.items()}
        return interpolated(times, block) / times[1]

    def exit_seconds(self, layers: int) -> float | None:
        """Return the time of one token through the target's first layers and its head; None if no exit was timed."""
        return interpolated({n: each.median for n, each in self.exits.items()}, layers) if self.exits else None

    def leaving(self, exit: ExitInfo) -> Profile | None:
        """Return the profile with an early exit of the target as draft model; None if this exit has no timing.

        A target call skips the exit's layers for tokens that they have already read, all but the block's last. So these
        layers' share of a step stays constant, and the rest grows with the block as a whole call does.
        """
        seconds = self.exit_seconds(exit.layers)
        if seconds is None or exit.uncaptured:
            return None
        step = self.target[1].median
        nearest = min(self.exits, key=lambda n: abs(n - exit.layers))
        share = (step - seconds) / step * exit.layers / (exit.depth - exit.layers)
        share = min(max(share, 0.0), 1.0)
        return self.model_copy(
            update={
                "draft": {1: self.exits[nearest].times(seconds / self.exits[nearest].median)},
                "target": {
                    n: each if n == 1 else each.times(1 - share + share / self.v(n)) for n, each in self.target.items()
                },
            }
        )

    @property
    def spread(self) -> float:
        """Median spread of all draft model and target timings."""
        return median([each.spread for each in (*self.draft.values(), *self.target.values())])


def interpolated(values: Mapping[int, float], at: int) -> float:
    """Interpolate linearly between neighbours; beyond the last point, continue the last line if it rises."""
    known = sorted(values)
    if at in values or len(known) == 1:
        return values[at if at in values else known[0]]
    below, above = _around(known, at)
    slope = (values[above] - values[below]) / (above - below)
    if at > above:
        return values[above] + max(slope, 0.0) * (at - above)
    return values[below] + slope * (at - below)


def _around(known: Sequence[int], at: int) -> tuple[int, int]:
    """Return the neighbours of a point among sorted ones, or the two nearest on one side."""
    above = next((i for i, point in enumerate(known) if point > at), len(known) - 1)
    place = max(above, 1)
    return known[place - 1], known[place]
