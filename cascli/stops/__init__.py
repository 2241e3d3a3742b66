"""Stops, which end a draft early, one file each, found by file name: `max_q.py` holds `max-q`. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cascli import plugins
from cascli.stops.base import Stop

__all__ = ["Stop", "broken", "load", "names", "usable"]


def names() -> list[str]:
    """The names of all stops."""
    return plugins.names(sys.modules[__name__])


def usable(works: Callable[[Stop], object]) -> list[str]:
    """The names of all stops, without those of other packages that cannot be created or for which `works` raises."""
    return plugins.usable(sys.modules[__name__], "stop", Stop, works)


def broken(works: Callable[[Stop], object]) -> dict[str, str]:
    """The names that `usable` leaves out, with the reasons."""
    return plugins.broken(sys.modules[__name__], "stop", Stop, works)


def load(name: str) -> type[Stop]:
    """The class of the stop `name`.

    Raises:
        UsageError: there is no such stop.
    """
    return plugins.load(sys.modules[__name__], "stop", name, Stop)
