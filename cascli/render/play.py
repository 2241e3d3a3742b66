"""Replays a saved comparison at its measured times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from cascli.analysis.comparison import Comparison
from cascli.render.comparison import by_prompt
from cascli.render.console import Screen
from cascli.render.race import RaceView
from cascli.trace import Round, Run


def play(
    comparison: Comparison, screen: Screen, speed: float = 1.0, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show all strategies at work concurrently, as if each had the machine to itself; `speed` 2 is twice as fast."""
    batch = max((run.batch_size for run in comparison.runs), default=1)
    if batch > 1:
        screen.note(
            f"played at their shares of the time of {batch} answers at once: none was written alone in this time"
        )
    for group in by_prompt(comparison.runs):
        with RaceView(screen, [run.spec for run in group]) as view:
            at = 0.0
            for moment, place, round_ in timeline(group):
                sleep(max(moment - at, 0.0) / speed)
                at = moment
                view.round(place, round_)
                if round_ is group[place].rounds[-1]:
                    view.ended(place, group[place])
            sleep(1.0 / speed)


def timeline(runs: Sequence[Run]) -> Iterator[tuple[float, int, Round]]:
    """When each round of each run was decided, in seconds from the start, in order of time.

    Time that no round accounts for, such as that of a draft model's withdrawn answer, comes before the first.
    """
    events = []
    for place, run in enumerate(runs):
        at = run.metrics.seconds.total - sum(round_.seconds.total for round_ in run.rounds)
        for round_ in run.rounds:
            at += round_.seconds.total
            events.append((at, place, round_))
    yield from sorted(events, key=lambda event: event[:2])
