"""What speculation could gain from step times, for several acceptance rates, alone and in batches. No torch.

In a batch the closed forms are the same, with the times of its passes. Verification stops being free once the weights
are read for many rows: v(k) rises with the batch, and there is one from which speculation costs more than it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis import theory
from cascli.analysis.profile import Profile
from cascli.trace import Data

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)


class Prospect(Data):
    """What speculation gains at an acceptance rate, by theory from measured c and v(k)."""

    acceptance: float
    best_k: int | None
    """Of the block lengths that were timed; None if none gains."""
    or_more: bool = False
    """Whether `best_k` is the longest that was timed, so that a longer one may be better still."""
    speed_up: float
    """At the best k, below 1 if none gains."""


def prospects(profile: Profile, acceptances: Sequence[float] = ACCEPTANCES) -> list[Prospect]:
    """The best block length and its speed-up for several acceptance rates."""
    table, longest = [], profile.longest - 1
    for a in acceptances:
        k = theory.best_k(a, profile.c, lambda n: profile.v(n + 1), longest)
        gain = theory.speed_up(a, k, profile.c, profile.v(k + 1))
        pays = gain > 1
        table.append(Prospect(acceptance=a, best_k=k if pays else None, or_more=pays and k == longest, speed_up=gain))
    return table


class BreakEven(Data):
    """The largest batch for which speculation pays at an acceptance rate, at the best k of each batch."""

    acceptance: float
    largest: int | None
    """Of the sizes that were timed; None if it pays for none."""
    or_more: bool
    """Whether that is the largest that was timed."""


def break_even(profiles: Sequence[Profile], acceptances: Sequence[float] = ACCEPTANCES) -> list[BreakEven]:
    """The largest batch for which speculation gains, for several acceptance rates.

    A smaller one may not: times differ by chance, and a check may cost a single answer more than two.
    """
    found = []
    most = max(profile.batch_size for profile in profiles)
    told = [(profile.batch_size, prospects(profile, acceptances)) for profile in profiles]
    for place, acceptance in enumerate(acceptances):
        paying = max((size for size, each in told if each[place].best_k is not None), default=None)
        found.append(BreakEven(acceptance=acceptance, largest=paying, or_more=paying == most))
    return found
