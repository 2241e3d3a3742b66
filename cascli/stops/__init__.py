"""Stops, which end a draft early, one file each, found by file name: `max_q.py` holds `max-q`. No torch."""

from __future__ import annotations

import sys

from cascli import plugins
from cascli.stops.base import Stop

__all__ = ["Stop", "load", "names"]


def names() -> list[str]:
    """The names of all stops."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> type[Stop]:
    """The class of the stop `name`.

    Raises:
        UsageError: there is no such stop.
    """
    return plugins.load(sys.modules[__name__], "stop", name, Stop)
