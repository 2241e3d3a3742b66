"""Sources of drafted tokens, one file each, found by file name: `prompt_lookup.py` holds `prompt-lookup`.

Drafters import torch only while they draft. They depend on sessions (`cascli.decoding`), not on strategies.
"""

from __future__ import annotations

import sys

from cascli import plugins
from cascli.drafters.base import Drafter

__all__ = ["Drafter", "load", "names"]


def names() -> list[str]:
    """The names of all drafters."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> type[Drafter]:
    """The class of the drafter `name`.

    Raises:
        UsageError: there is no such drafter.
    """
    return plugins.load(sys.modules[__name__], "drafter", name, Drafter)
