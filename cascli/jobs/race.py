"""Strategies under way at once on one set of weights: whoever has had the least time goes on next.

Strategies that run one after another meet different machines: whoever runs while something else wants the processor
looks slow. Here all of them see the same machine, slice by slice. A slice is a few rounds long, so that what one left
in the processor's caches costs the next one little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Event = TypeVar("Event")

ROUNDS = 2
"""Rounds of a slice, at least."""
SECONDS = 0.2
"""Length of a slice, at least."""


def race(
    runs: Sequence[Iterator[Event]],
    on_event: Callable[[int, Event], None],
    *,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Run iterators to their ends, in slices of equal time.

    Args:
        runs: each does its work when it is asked for its next event.
        on_event: told the place among `runs` and the event; the time that it takes is nobody's.
        now: seconds.
    """
    used = dict.fromkeys(range(len(runs)), 0.0)
    while used:
        place = min(used, key=lambda each: used[each])
        spent, ended = _slice(place, runs[place], on_event, now)
        used[place] += spent
        if ended:
            del used[place]


def _slice(
    place: int, events: Iterator[Event], on_event: Callable[[int, Event], None], now: Callable[[], float]
) -> tuple[float, bool]:
    """Let one go on for a slice: the seconds that it took, and whether it has ended."""
    spent, rounds = 0.0, 0
    while rounds < ROUNDS or spent < SECONDS:
        start = now()
        try:
            event = next(events)
        except StopIteration:
            return spent + now() - start, True
        spent += now() - start
        rounds += 1
        on_event(place, event)
    return spent, False
