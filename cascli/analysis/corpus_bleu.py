"""BLEU of a whole corpus, from counts of its answers, and how it varies with the prompts. No torch.

BLEU is no mean over answers: matches and lengths are summed over the corpus first (Papineni et al. 2002). An answer is
ten counts, in sacrebleu's order: its words, the reference's, its 1- to 4-grams that the reference has, all its 1- to
4-grams.
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
"""Of the longest n-grams."""
COUNTS = 2 + 2 * ORDER
Counts = Sequence[int]


def corpus_bleu(answers: Sequence[Counts]) -> float:
    """BLEU of all answers together, in [0, 1], as sacrebleu has it (smoothing `exp`).

    Args:
        answers: of each answer `COUNTS` numbers.
    """
    return float(_bleu(_array(answers).sum(axis=0)))


def bleu_interval(answers: Sequence[Counts]) -> Interval | None:
    """A 95% interval of corpus BLEU over prompts, one of `answers` each; None for fewer than two.

    The prompts are drawn again, the corpus with them (Koehn 2004); the scatter of 1,000 such corpora is taken for the
    standard error (`statistics.from_scatter`). Fewer than six prompts have the range of the BLEU of each alone.
    """
    counts = _array(answers)
    found = _interval(_bleu(counts), _bleu(counts.sum(axis=0)), lambda drawn: _bleu(drawn @ counts), same=False)
    return found and found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def bleu_difference_interval(ours: Sequence[Counts], theirs: Sequence[Counts]) -> Interval | None:
    """Likewise of the difference of two corpora of answers to the same prompts, which are drawn together."""
    a, b = _array(ours), _array(theirs)
    return _interval(
        _bleu(a) - _bleu(b),
        _bleu(a.sum(axis=0)) - _bleu(b.sum(axis=0)),
        lambda drawn: _bleu(drawn @ a) - _bleu(drawn @ b),
        same=bool((a == b).all()),
    )


def _array(answers: Sequence[Counts]) -> Numbers:
    """`[answers, COUNTS]`, also of none."""
    import numpy as np

    return np.array(answers, dtype=float).reshape(-1, COUNTS)


def _interval(
    alone: Numbers, middle: Numbers, of_corpora: Callable[[Numbers], Numbers], *, same: bool
) -> Interval | None:
    """Of a statistic of each prompt alone `[n]`, of all of them, and of corpora of drawn prompts.

    That prompts alone are alike says nothing: most have no 4-gram in common with their reference, and BLEU 0 each,
    where the corpus has some. `same`: all counts of the two that are compared are.
    """
    n = len(alone)
    if n < 2 or same or n < FEWEST:
        return None if n < 2 else span([*alone.tolist(), float(middle)])
    return from_scatter(float(middle), float(of_corpora(_draws(n)).std()), n)


@lru_cache(maxsize=2)
def _draws(n: int) -> Numbers:
    """How often each of `n` prompts is drawn into each corpus `[RESAMPLES, n]`: the same for every strategy."""
    import numpy as np

    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def _bleu(counts: Numbers) -> Numbers:
    """BLEU of each row of counts `[..., COUNTS]`."""
    import numpy as np

    ours, theirs = counts[..., 0], counts[..., 1]
    matches, total = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    with np.errstate(divide="ignore", invalid="ignore"):
        # The i-th order without a match counts as 1 / 2^i of one.
        smoothed = np.where(matches > 0, matches, 0.5 ** (matches == 0).cumsum(axis=-1)) / total
        bleu = np.exp(np.minimum(1 - theirs / ours, 0.0) + np.log(smoothed).mean(axis=-1))
    return np.where((matches.sum(axis=-1) > 0) & (total.min(axis=-1) > 0), bleu, 0.0)
