"""Numbers with as many digits as show on which side of a bound they are. No torch."""

from __future__ import annotations

MOST_DIGITS = 12


def apart(value: float, bound: float, digits: int, sign: str = "") -> str:
    """Return a number with these digits, or as many more as show on which side of a bound it is; `sign` may be "+".

    >>> apart(1.199, 1.2, 2)
    '1.199'
    """
    for more in range(digits, MOST_DIGITS):
        text = f"{value:{sign}.{more}f}"
        if (float(text) < bound, float(text) > bound) == (value < bound, value > bound):
            return text
    return repr(value)


def compared(value: float, bounds: tuple[float, float] | None, null: float, digits: int = 2) -> str:
    """Return a number next to its bounds: on its side of `null` where they exclude that; a difference is signed.

    `null` is what the number would be if nothing differed: 1 for a ratio, 0 for a difference.
    """
    sign = "+" if null == 0 else ""
    return apart(value, null, digits, sign) if excludes(bounds, null) else f"{value:{sign}.{digits}f}"


def bounds_apart(bounds: tuple[float, float], null: float | None, to: str) -> str:
    """Return two bounds joined by `to`: on their side of `null` if they exclude it; a difference's are signed."""
    low, high = (f"{each:.2f}" if null is None else compared(each, bounds, null) for each in bounds)
    return f"{low}{to}{high}"


def excludes(bounds: tuple[float, float] | None, null: float) -> bool:
    """Return whether there are bounds, and they exclude a value."""
    return bounds is not None and not bounds[0] <= null <= bounds[1]
