"""BLEU of a whole corpus, from counts of its answers, and how it varies with the prompts. No torch.

BLEU is not a mean over answers: matches and lengths are first summed over the corpus (Papineni et al. 2002). An answer
is represented by ten counts, in sacrebleu's order: its words, the reference's words, its 1- to 4-grams that occur in
the reference, and all its 1- to 4-grams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from cascli.analysis.statistics import FEWEST, RESAMPLES, Interval, from_scatter, span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ORDER = 4
"""Length of the longest n-grams."""
COUNTS = 2 + 2 * ORDER
Counts = Sequence[int]


def corpus_bleu(answers: Sequence[Counts]) -> float:
    """Return BLEU of all answers together, in [0, 1], as sacrebleu computes it (smoothing `exp`).

    Args:
        answers: `COUNTS` numbers for each answer.
    """
    return float(_bleu(_array(answers).sum(axis=0)))


def bleu_interval(answers: Sequence[Counts]) -> Interval | None:
    """Return a 95% interval of corpus BLEU over prompts, one of `answers` each; None for fewer than two.

    Prompts are resampled, and the corpus with them (Koehn 2004); the standard deviation of 1,000 such corpora is the
    standard error (`statistics.from_scatter`). Fewer than six prompts get the range of the BLEU of each and of all.
    """
    counts = _array(answers)
    interval = _interval(_bleu(counts), _bleu(counts.sum(axis=0)), lambda drawn: _bleu(drawn @ counts), same=False)
    return interval and interval._replace(low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def bleu_difference_interval(ours: Sequence[Counts], theirs: Sequence[Counts]) -> Interval | None:
    """Return a 95% interval of the difference of two corpora for the same prompts, which are resampled together."""
    a, b = _array(ours), _array(theirs)
    return _interval(
        _bleu(a) - _bleu(b),
        _bleu(a.sum(axis=0)) - _bleu(b.sum(axis=0)),
        lambda drawn: _bleu(drawn @ a) - _bleu(drawn @ b),
        same=bool((a == b).all()),
    )


def _array(answers: Sequence[Counts]) -> Numbers:
    """Return an array `[answers, COUNTS]`, even if there are no answers."""
    import numpy as np

    return np.array(answers, dtype=float).reshape(-1, COUNTS)


def _interval(
    alone: Numbers, middle: Numbers, of_corpora: Callable[[Numbers], Numbers], *, same: bool
) -> Interval | None:
    """Return an interval from a statistic of each prompt alone `[n]`, of all prompts, and of resampled corpora.

    Equal values of single prompts say nothing about scatter: most prompts share no 4-gram with their reference and have
    BLEU 0, while the corpus shares some. `same`: whether all counts of the two compared corpora are equal.
    """
    n = len(alone)
    if n < 2 or same or n < FEWEST:
        return None if n < 2 else span([*alone.tolist(), float(middle)])
    return from_scatter(float(middle), float(of_corpora(_draws(n)).std()), n)


@lru_cache(maxsize=2)
def _draws(n: int) -> Numbers:
    """Return how often each of `n` prompts is drawn into each corpus `[RESAMPLES, n]`: the same for every strategy."""
    import numpy as np

    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def _bleu(counts: Numbers) -> Numbers:
    """Return BLEU of each row of counts `[..., COUNTS]`."""
    import numpy as np

    ours, theirs = counts[..., 0], counts[..., 1]
    matches, total = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    with np.errstate(divide="ignore", invalid="ignore"):
        # The i-th order without a match counts as 1 / 2^i of a match.
        smoothed = np.where(matches > 0, matches, 0.5 ** (matches == 0).cumsum(axis=-1)) / total
        bleu = np.exp(np.minimum(1 - theirs / ours, 0.0) + np.log(smoothed).mean(axis=-1))
    return np.where((matches.sum(axis=-1) > 0) & (total.min(axis=-1) > 0), bleu, 0.0)
