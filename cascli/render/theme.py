"""The colours of token states, and the background that they are made for (`CASCLI_THEME`)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cascli.errors import UsageError, unknown

VARIABLE = "CASCLI_THEME"
DEFAULT = "any"
PALETTES: dict[str, dict[str, str]] = {
    "any": {
        "accepted": "#138827",
        "residual": "#a26a09",
        "bonus": "#0c8193",
        "draft": "#1870ec",
        "target": "#b73ecf",
        "rejected": "#df2f22",
    },
    "dark": {
        "accepted": "#8fce6b",
        "residual": "#ffd75f",
        "bonus": "#5fd7ff",
        "draft": "#8ab4ff",
        "target": "#e28cff",
        "rejected": "#ff8b80",
    },
    "light": {
        "accepted": "#2b6e0f",
        "residual": "#7a5200",
        "bonus": "#006a80",
        "draft": "#1f4fbf",
        "target": "#8a1fa8",
        "rejected": "#b3261e",
    },
}
"""Colours with a contrast of at least 4.5: on both black and white, or on one background."""


def theme(environ: Mapping[str, str] | None = None) -> str:
    """The palette that the environment names; the default if the variable is unset or empty.

    Raises:
        UsageError: there is no palette of that name.
    """
    name = (os.environ if environ is None else environ).get(VARIABLE) or DEFAULT
    if name not in PALETTES:
        raise UsageError(f"environment variable {VARIABLE}: {unknown('theme', name, PALETTES)}")
    return name


COLORS = PALETTES.get(os.environ.get(VARIABLE) or DEFAULT, PALETTES[DEFAULT])
"""The colours of this process. An unknown theme is rejected when a screen is made, where an error can be shown."""
