"""Numbers as people read them; what was not computed is a dash, never a zero."""

from __future__ import annotations

DASH = "–"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with fixed digits."""
    return DASH if value is None else f"{value:.{digits}f}{unit}"


def share(value: float | None) -> str:
    """A fraction with two digits."""
    return number(value)


def yes_no(value: bool | None) -> str:
    """A bool as yes or no."""
    return DASH if value is None else ("yes" if value else "no")


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return DASH
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms"


def duration(value: float) -> str:
    """A long time, as coarsely as one plans with it."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 90 * 60 else f"{value / 3600:.1f} h"


def tv(value: float | None) -> str:
    """A total variation: exact zero is told from a small value."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return DASH
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
