"""Interleave strategies on one set of weights: the one that has run for the least time goes next.

Strategies that run one after another see different machine conditions: one that runs while something else needs the
processor looks slow. Interleaved in slices, all of them see the same conditions. A slice lasts a few rounds, so that
processor caches filled by one strategy cost the next one little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Event = TypeVar("Event")

ROUNDS = 2
"""Minimum number of rounds in a slice."""
SECONDS = 0.2
"""Minimum length of a slice, in seconds."""


def race(
    runs: Sequence[Iterator[Event]],
    on_event: Callable[[int, Event], None],
    *,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Run iterators to exhaustion, in slices of equal time.

    Args:
        runs: each does its work when its next event is requested.
        on_event: called with the index in `runs` and the event; its own time is not charged to any run.
        now: the clock, in seconds.
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
    """Run one iterator for a slice; return the seconds it took and whether it has ended."""
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
