"""Repetitions in an answer: a model that says the same over and over is fast, and worth nothing. No torch."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 64
"""Tokens of the longest phrase whose repetition is looked for."""
TIMES = 3
"""How often in a row a phrase has to come to be called a loop."""
SHORTEST = 24
"""Tokens that the repetitions have at least: three equal tokens are no loop."""


def looped_tokens(ids: Sequence[int]) -> int:
    """How many tokens lie in a stretch that is one phrase three times or more in a row."""
    looped = [False] * len(ids)
    for period in range(1, min(LONGEST_PERIOD, len(ids) // TIMES) + 1):
        same = 0  # tokens up to here that are what stood a period before
        for place in range(period, len(ids) + 1):
            if place < len(ids) and ids[place] == ids[place - period]:
                same += 1
                continue
            if same + period >= max(TIMES * period, SHORTEST):
                start = place - same - period
                looped[start:place] = [True] * (place - start)
            same = 0
    return sum(looped)
