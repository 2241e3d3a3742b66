"""Numbers for people to read; what was not computed is a dash, never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable

from cascli.analysis.digits import apart, bounds_apart
from cascli.analysis.percentiles import Percentiles
from cascli.analysis.statistics import IntervalKind

DASH = "–"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with fixed digits."""
    return DASH if value is None else f"{value:.{digits}f}{unit}"


def yes_no(value: bool | None) -> str:
    """A bool as yes or no."""
    return DASH if value is None else ("yes" if value else "no")


def bounds_text(bounds: tuple[float, float] | None, kind: IntervalKind | None, *, null: float | None = None) -> str:
    """Two bounds in the brackets of their kind: ( ) an interval, [ ] a range; empty if all values are the same.

    `null` is what the value would be if nothing differed: 1 for a ratio, 0 for a difference. Bounds that exclude it
    have as many digits as show that.
    """
    if bounds is None or kind == "no scatter":
        return ""
    text = bounds_apart(bounds, null, " to " if null == 0 else "-")
    return f"[{text}]" if kind == "range" else f"({text})"


def rate(value: float | None) -> str:
    """A share as a fraction; only none is 0.00 and only all is 1.00."""
    if value is None or math.isnan(value):
        return number(value)
    return apart(value, round(value), 2)


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return DASH
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms"


def percentile_text(percentiles: Percentiles | None, show: Callable[[float], str]) -> str:
    """Those percentiles that are known, each as `show` writes it."""
    if percentiles is None:
        return DASH
    return " / ".join(show(each) for each in (percentiles.p50, percentiles.p90, percentiles.p99) if each is not None)


def duration(value: float) -> str:
    """A long time, as coarse as planning allows."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 90 * 60 else f"{value / 3600:.1f} h"


def tv(value: float | None) -> str:
    """A total variation; exact zero is distinguished from a small value."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def nats(value: float | None) -> str:
    """A sum of nats; a small one keeps a significant digit instead of showing as zero."""
    if value is None:
        return DASH
    return "0" if value == 0 else f"{value:.1f}" if value >= 0.05 else f"{value:.1g}"


def percent(share: float) -> str:
    """A share in whole percent; 0% and 100% mean none and all."""
    text = f"{100 * share:.0f}%"
    if text == "0%" and share > 0:
        return "<1%"
    return ">99%" if text == "100%" and share < 1 else text


def count(value: float) -> str:
    """A median of counts, which may fall between two."""
    return f"{value:.1f}".removesuffix(".0")


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number of things, such as `1 prompt` or `20 prompts`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def operations(count: float | None) -> str:
    """Floating point operations, in billions; few ones keep two significant digits."""
    if count is None:
        return DASH
    return f"{count / 1e9:.2f}" if count >= 1e8 or count == 0 else f"{count / 1e9:.2g}"


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return DASH
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 or count == 0 else f"{count / 1e6:.2g} MB"
