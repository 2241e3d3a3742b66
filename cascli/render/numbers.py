"""Numbers for people to read; what was not computed is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Callable

from cascli.analysis.percentiles import Percentiles
from cascli.analysis.statistics import IntervalKind

DASH = "–"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with fixed digits."""
    return DASH if value is None else f"{value:.{digits}f}{unit}"


def yes_no(value: bool | None) -> str:
    """A bool as yes or no."""
    return DASH if value is None else ("yes" if value else "no")


def bounds_text(bounds: tuple[float, float] | None, kind: IntervalKind | None, *, signed: bool = False) -> str:
    """Two bounds in the brackets of their kind: ( ) an interval, [ ] a range; empty if all values are the same."""
    if bounds is None or kind == "no scatter":
        return ""
    low, high = (f"{each:+.2f}" if signed else f"{each:.2f}" for each in bounds)
    text = f"{low} to {high}" if signed else f"{low}-{high}"
    return f"[{text}]" if kind == "range" else f"({text})"


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


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return DASH
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
