"""How something is distributed: its median, and how far out the rare ones are. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis.statistics import median, percentile
from cascli.trace import Data


class Percentiles(Data):
    """A distribution; the outer ones only where there are enough values to speak of them."""

    p50: float
    p90: float | None
    p99: float | None


def percentiles(values: Sequence[float | None]) -> Percentiles | None:
    """The median, and the 90th and 99th percentile of at least 10 and 100 values; None for no values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    p90, p99 = (percentile(known, share) if len(known) >= least else None for share, least in ((0.9, 10), (0.99, 100)))
    return Percentiles(p50=median(known), p90=p90, p99=p99)
