"""Repetitions in an answer: a model that repeats itself endlessly is fast but useless. No torch."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 64
"""Longest phrase whose repetition is detected, in tokens."""
TIMES = 3
"""Number of times in a row that a phrase must occur to count as a loop."""
SHORTEST = 24
"""Minimum length of a loop in tokens: three equal tokens are not a loop."""


def looped_tokens(ids: Sequence[int]) -> int:
    """Return the number of tokens in stretches that repeat one phrase three or more times in a row."""
    looped = [False] * len(ids)
    for period in range(1, min(LONGEST_PERIOD, len(ids) // TIMES) + 1):
        same = 0  # tokens up to here that equal the one a period earlier
        for place in range(period, len(ids) + 1):
            if place < len(ids) and ids[place] == ids[place - period]:
                same += 1
                continue
            if same + period >= max(TIMES * period, SHORTEST):
                start = place - same - period
                looped[start:place] = [True] * (place - start)
            same = 0
    return sum(looped)
