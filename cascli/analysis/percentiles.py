"""Percentiles of a distribution: the median, and the tail where there are enough values. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis.statistics import median, percentile
from cascli.trace import Data


class Percentiles(Data):
    """Percentiles of a distribution; the 90th requires at least 10 values, the 99th at least 100."""

    p50: float
    p90: float | None
    p99: float | None


def percentiles(values: Sequence[float | None]) -> Percentiles | None:
    """Return the median, the 90th percentile of 10 or more values, and the 99th of 100 or more; None for no values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    p90, p99 = (percentile(known, share) if len(known) >= least else None for share, least in ((0.9, 10), (0.99, 100)))
    return Percentiles(p50=median(known), p90=p90, p99=p99)
