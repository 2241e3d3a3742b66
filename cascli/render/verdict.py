"""The result of a comparison in one sentence, for a reader who has seen none of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis.comparison import Row
from cascli.render.marks import is_mixed, short_name

SAME = 0.05
"""Relative difference up to which two speeds count as the same."""


def verdict(rows: Sequence[Row], *, fancy: bool = True) -> str | None:
    """Which strategies are faster than the target, and at what price; None without the target or another strategy."""
    others = [row for row in rows if is_mixed(row.strategy) and not row.oracle]
    known = [row for row in others if row.speed_vs_target is not None]
    if not known:
        return None
    faithful = [row for row in known if row.lossless or row.same_as_target]
    lossy = [row for row in known if row not in faithful]
    best, loosest = (max(each, key=_speed, default=None) for each in (faithful, lossy))
    clauses = []
    if best is not None:
        name = short_name(best.strategy, fancy=fancy)
        kept = "the same text" if best.same_as_target else "the same distribution"
        speed = f"{_speed(best):.2f}x{_by_chance(best)}"
        clauses.append(
            f"{name} is {_as_fast(best)} as target{_by_chance(best)}, with {kept}"
            if _speed(best) >= 1 - SAME
            else f"None that calls the target is as fast with {kept} (best: {name}, {speed})"
        )
    if loosest is not None and (best is None or _speed(loosest) > _speed(best)):
        name = short_name(loosest.strategy, fancy=fancy)
        target = " as target" if best is None else ""
        but = "but" if _speed(loosest) >= 1 - SAME else "and"
        clauses.append(
            f"{name} is {_as_fast(loosest)}{target}{_by_chance(loosest)}, {but} its text {_differs(loosest)}"
        )
    return "; ".join(clauses) + "."


def _speed(row: Row) -> float:
    return row.speed_vs_target or 0.0


def _as_fast(row: Row) -> str:
    speed = _speed(row)
    if abs(speed - 1) <= SAME:
        return "about as fast"
    return f"{speed:.{1 if speed >= 1.5 else 2}f}x as fast" if speed > 1 else f"only {speed:.2f}x as fast"


def _by_chance(row: Row) -> str:
    """The interval or range of a speed, if it includes the target's own speed."""
    bounds = row.speed_interval
    if bounds is None or not bounds[0] <= 1 <= bounds[1] or abs(_speed(row) - 1) <= SAME:
        return ""
    kind = "95%" if row.speed_interval_kind == "95%" else "range"
    return f", within chance ({kind} {bounds[0]:.2f}-{bounds[1]:.2f})"


def _differs(row: Row) -> str:
    place = row.first_divergence
    if row.same_as_target is None:
        return "ended early, before it differed"
    if row.answers is not None and row.answers > 1:
        return f"differs in {row.answers - (row.answers_same or 0)} of {row.answers} answers"
    return "is not the target's" if place is None else f"differs from token {place + 1} onwards"
