"""Percentiles, and how many values they need."""

from __future__ import annotations

import pytest

from cascli.analysis.comparison import percentiles
from cascli.analysis.statistics import percentile


def test_percentile_is_the_usual_one() -> None:
    values = [3.0, 1.0, 2.0, 4.0]
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.25) == 1.75
    assert percentile(values, 1.0) == 4.0
    assert percentile([7.0], 0.9) == 7.0


def test_outer_percentiles_need_enough_values() -> None:
    assert percentiles([None, None]) is None
    few, some, many = (percentiles([float(i) for i in range(n)]) for n in (9, 10, 100))
    assert few is not None and few.p90 is None and few.p50 == 4
    assert some is not None and some.p90 == pytest.approx(8.1) and some.p99 is None
    assert many is not None and many.p99 == pytest.approx(98.01)
