"""What speculation could gain at several acceptance rates, from step times, alone and in batches. No torch.

In a batch the closed forms are the same, with the times of its passes. Verification stops being free once the weights
are read for many rows: v(k) rises with the batch size, and above some size speculation costs more than it gains.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis import theory
from cascli.analysis.profile import Profile
from cascli.trace import Data

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)


class Prospect(Data):
    """Theoretical gain of speculation at an acceptance rate, from measured c and v(k)."""

    acceptance: float
    best_k: int | None
    """Best of the timed block lengths; None if none gains."""
    or_more: bool = False
    """Whether `best_k` is the longest that was timed, so a longer one may be better still."""
    speed_up: float
    """Predicted speed-up at the best k; at most 1 if none gains."""


def prospects(profile: Profile, acceptances: Sequence[float] = ACCEPTANCES) -> list[Prospect]:
    """Return the best block length and its speed-up for several acceptance rates."""
    found, longest = list[Prospect](), profile.longest - 1
    for a in acceptances:
        k = theory.best_k(a, profile.c, lambda n: profile.v(n + 1), longest)
        gain = theory.speed_up(a, k, profile.c, profile.v(k + 1))
        pays = gain > 1
        found.append(Prospect(acceptance=a, best_k=k if pays else None, or_more=pays and k == longest, speed_up=gain))
    return found


class BreakEven(Data):
    """The largest batch for which speculation pays at an acceptance rate, at the best k of each batch."""

    acceptance: float
    largest: int | None
    """Largest timed batch size for which speculation pays; None if it pays for none."""
    or_more: bool
    """Whether `largest` is the largest batch size that was timed."""


def break_even(profiles: Sequence[Profile], acceptances: Sequence[float] = ACCEPTANCES) -> list[BreakEven]:
    """Return the largest batch for which speculation gains, for several acceptance rates.

    Speculation may not gain in a smaller batch: times differ by chance, and a check may cost more for a single answer
    than for two.
    """
    results = []
    most = max(profile.batch_size for profile in profiles)
    by_size = [(profile.batch_size, prospects(profile, acceptances)) for profile in profiles]
    for place, acceptance in enumerate(acceptances):
        paying = max((size for size, each in by_size if each[place].best_k is not None), default=None)
        results.append(BreakEven(acceptance=acceptance, largest=paying, or_more=paying == most))
    return results
