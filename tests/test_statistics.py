"""Intervals have the coverage they claim: simulated over many samples of known truth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cascli.analysis.statistics import (
    Interval,
    _t_quantile,
    difference_interval,
    from_scatter,
    mean_interval,
    median_interval,
    ratio_interval,
)

Draw = Callable[[random.Random], float]
LEAST = 0.90
"""Minimum coverage of intervals labelled 95%."""


def spiked(share: float, of: Callable[[random.Random], float], else_: float) -> Draw:
    """A score that is drawn from `of` with probability `share`, and otherwise is always `else_`."""
    return lambda rng: of(rng) if rng.random() < share else else_


MEANS: dict[str, tuple[Draw, float]] = {
    "even": (lambda rng: rng.random(), 0.5),
    "agreement, half of it whole": (spiked(0.5, lambda rng: rng.betavariate(2, 2), 1.0), 0.75),
    "agreement, mostly whole": (spiked(0.1, lambda rng: rng.betavariate(1, 5), 1.0), 0.9 + 0.1 / 6),
    "skewed": (lambda rng: rng.betavariate(0.5, 2), 0.2),
    "pass at 0.5": (spiked(0.5, lambda _: 0.0, 1.0), 0.5),
    "pass at 0.9": (spiked(0.1, lambda _: 0.0, 1.0), 0.9),
    "pass at 0.97": (spiked(0.03, lambda _: 0.0, 1.0), 0.97),
}
DIFFERENCES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng: max(-1.0, min(1.0, rng.gauss(0.05, 0.1))), 0.05),
    "few, either way": (spiked(0.2, lambda rng: rng.choice((-1, 1)) * rng.betavariate(1, 2), 0.0), 0.0),
    "few, one way": (spiked(0.15, lambda rng: -rng.betavariate(1, 4), 0.0), -0.03),
    "passes lost": (spiked(0.1, lambda _: -1.0, 0.0), -0.1),
    "passes lost and won": (spiked(0.3, lambda rng: rng.choice((-1.0, -1.0, 1.0)), 0.0), -0.1),
}


def coverage(interval: Callable[[Sequence[float]], Interval | None], draw: Draw, truth: float, n: int) -> float:
    """Share of the intervals labelled 95% that contain the truth, over 400 samples."""
    rng, held = random.Random(n), []
    for _ in range(400):
        found = interval([draw(rng) for _ in range(n)])
        assert found is not None
        if found.kind == "95%":
            held.append(found.low - 1e-12 <= truth <= found.high + 1e-12)
    return sum(held) / len(held)


@pytest.mark.parametrize("n", [10, 20, 80])
@pytest.mark.parametrize("name", MEANS)
def test_intervals_of_means_cover(name: str, n: int) -> None:
    draw, truth = MEANS[name]
    assert coverage(mean_interval, draw, truth, n) >= LEAST


@pytest.mark.parametrize("n", [10, 20, 80])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_intervals_of_paired_differences_cover(name: str, n: int) -> None:
    draw, truth = DIFFERENCES[name]
    assert coverage(difference_interval, draw, truth, n) >= LEAST


def test_intervals_are_not_unnecessarily_wide() -> None:
    """They are about as wide as Student's for 80 uniform scores, whose half width is 1.99 * 0.289 / sqrt(80)."""
    rng = random.Random(0)
    found = mean_interval([rng.random() for _ in range(80)])
    assert found is not None
    assert 0.118 < found.high - found.low < 0.139


def test_a_bootstrap_would_not_have_passed() -> None:
    """The method used before, percentiles of resampled means, misses rare bad answers."""

    def bootstrap(values: Sequence[float]) -> Interval:
        rng = random.Random(0)
        means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(200))
        return Interval(means[5], means[194], "95%")

    assert coverage(bootstrap, *MEANS["agreement, mostly whole"], 10) < LEAST


def test_a_few_values_have_a_range() -> None:
    assert mean_interval([0.5]) is None and difference_interval([]) is None
    assert mean_interval([0.2, 0.9, 0.4]) == Interval(0.2, 0.9, "range")
    assert difference_interval([-0.1, 0.3]) == Interval(-0.1, 0.3, "range")
    assert mean_interval([1.0, 1.0]) == Interval(1.0, 1.0, "no scatter")


def test_a_perfect_score_is_not_certain() -> None:
    found = mean_interval([1.0] * 20)
    assert found is not None and found.high == 1.0
    assert found.low == pytest.approx(0.8389, abs=1e-4)  # Wilson's interval for 20 of 20
    alike = mean_interval([0.75] * 20)
    assert alike is not None and alike.low < 0.72 < 0.75 <= alike.high
    assert difference_interval([0.0] * 20) == Interval(0.0, 0.0, "no scatter")


def test_intervals_contain_the_observed_mean() -> None:
    for values in ([0.0] * 9 + [0.01], [1.0] * 9 + [0.99], [0.5] * 10):
        found = mean_interval(values)
        assert found is not None and found.low <= sum(values) / 10 <= found.high
        assert found.low >= 0 and found.high <= 1


def test_the_order_of_the_values_does_not_matter() -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(30)]
    for _ in range(20):
        mixed = rng.sample(values, 30)
        assert mean_interval(mixed) == mean_interval(values)
        assert difference_interval(mixed) == difference_interval(values)


@pytest.mark.parametrize(("freedom", "wanted"), [(5, 2.5706), (9, 2.2622), (19, 2.0930), (79, 1.9905)])
def test_students_quantile(freedom: int, wanted: float) -> None:
    assert _t_quantile(0.975, freedom) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("n", [6, 7, 10, 20, 80])
def test_intervals_of_medians_cover(n: int) -> None:
    """They cover skewed samples of few values, like ratios of speeds over repeats."""
    assert coverage(median_interval, lambda rng: rng.lognormvariate(0.0, 0.4), 1.0, n) >= 0.93


def test_medians_of_a_few_values_have_a_range() -> None:
    assert median_interval([1.0]) is None
    assert median_interval([1.3, 1.0, 1.1, 0.9, 1.2]) == Interval(0.9, 1.3, "range")
    assert median_interval([1.3, 1.0, 1.1, 0.9, 1.2, 1.4]) == Interval(0.9, 1.4, "95%")
    assert median_interval([float(i) for i in range(20)]) == Interval(5.0, 14.0, "95%")
    assert median_interval([1.0] * 9) == Interval(1.0, 1.0, "no scatter")


def test_few_prompts_widen_an_interval_for_unobserved_scatter() -> None:
    ratios = [2.0**i for i in range(6)]
    found = ratio_interval([[(each, 1.0)] for each in ratios])
    drawn = np.array(ratios)[np.random.default_rng(0).integers(6, size=(1000, 6))].sum(axis=1)
    error = math.hypot(float(np.log(drawn).std()) * math.sqrt(6 / 5), math.log(2) * math.sqrt(0.5) / 6)
    assert found is not None
    assert math.log(found.high / found.low) / 2 == pytest.approx(_t_quantile(0.975, 5) * error)
    scattered = from_scatter(0.5, 0.1, 6)
    assert scattered.high - 0.5 == pytest.approx(
        2.5706 * math.hypot(0.1 * math.sqrt(6 / 5), math.sqrt(0.5) / 6), rel=1e-3
    )


def test_students_interval_by_hand() -> None:
    values = [0.1, 0.2, 0.3, 0.5, 0.6, 0.7]  # plus half a 0 and half a 1: mean 2.9 / 7
    found, middle = mean_interval(values), 2.9 / 7
    squares = sum((each - middle) ** 2 for each in values) + 0.5 * (middle**2 + (1 - middle) ** 2)
    assert found is not None and found.high - found.low == pytest.approx(2 * 2.5706 * math.sqrt(squares) / 7, rel=1e-3)
