"""What a comparison or a sweep must show, so that a script can stop when it does not. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cascli.analysis.answer_costs import AnswerCosts
from cascli.errors import UsageError, unknown

BASELINE = "target"


class Judged(Protocol):
    """A row of a comparison or of a sweep."""

    @property
    def strategy(self) -> str:
        """With its parameters."""

    @property
    def lossless(self) -> bool | None:
        """Whether TV(pi, p) was 0 at every token."""

    @property
    def same_as_target(self) -> bool | None:
        """Whether all answers are the target's."""

    @property
    def speed_vs_target(self) -> float | None:
        """Over the target's."""

    @property
    def costs(self) -> AnswerCosts | None:
        """Of its answers."""


class Requirement(NamedTuple):
    """One thing that every strategy but `target` must show."""

    text: str
    name: str
    bound: float | None

    @classmethod
    def of(cls, text: str, *, scored: bool) -> Requirement:
        """From a flag, such as `lossless` or `length<=1.05`; `scored` where answers have a quality.

        Raises:
            UsageError: no such requirement, or not a bound.
        """
        name, sign, bound = _parts(text)
        if name not in SIGNS:
            raise UsageError(f"--require: {unknown('requirement', name, list(SIGNS))}")
        if name == "quality" and not scored:
            raise UsageError("--require quality: a comparison scores no answers; a sweep does.")
        wanted = SIGNS[name]
        if not wanted:
            if sign or bound:
                raise UsageError(f"--require {name}: takes no bound (got '{text}')")
            return cls(name, name, None)
        try:
            value = float(bound or "")
        except ValueError:
            value = float("nan")
        if sign != wanted or not 0 <= value < float("inf"):
            raise UsageError(f"--require {name}: write {name}{wanted}NUMBER (got '{text}')")
        return cls(f"{name}{wanted}{bound}", name, value)


def _parts(text: str) -> tuple[str, str, str]:
    """Name, sign and bound; the last two are empty where there is none."""
    name, sign, bound = re.split(r"([<>=]+)", text, maxsplit=1) if re.search("[<>=]", text) else (text, "", "")
    return name.strip(), sign, bound.strip()


SIGNS = {"lossless": "", "same-answer": "", "no-loops": "", "length": "<=", "speedup": ">=", "quality": ">="}
"""What can be required, and how a bound is written."""


def first_violation(requirements: Sequence[Requirement], rows: Sequence[Judged]) -> str | None:
    """The first strategy that does not show what it must, and what it shows; None if all show everything.

    What cannot be judged is a violation too: a gate that is not looked through is shut.
    """
    target = next((row for row in rows if row.strategy == BASELINE), None)
    if requirements and all(row is target for row in rows):
        return f"{requirements[0].text} is required, but no strategy other than {BASELINE} was run"
    for requirement in requirements:
        for row in rows:
            if row is target:
                continue
            found = _JUDGES[requirement.name](row, target, requirement.bound or 0.0)
            if found is not None:
                return f"{requirement.text} is required, but {row.strategy} {found}"
    return None


def _lossless(row: Judged, _: Judged | None, __: float) -> str | None:
    if row.lossless is None:
        return "is not known to be lossless"
    return None if row.lossless else "is not lossless"


def _same(row: Judged, _: Judged | None, __: float) -> str | None:
    if row.same_as_target is None:
        return "has no target to compare with"
    return None if row.same_as_target else "gave a different answer than target"


def _loops(row: Judged, target: Judged | None, _: float) -> str | None:
    if row.costs is None:
        return "was not checked for loops"
    theirs = target.costs.looped_share if target is not None and target.costs is not None else 0.0
    if row.costs.looped_share <= theirs:
        return None
    beside = f"target {theirs:.1%}" if target is not None else "none is allowed"
    return f"has {row.costs.looped_share:.1%} of its tokens in loops ({beside})"


def _length(row: Judged, _: Judged | None, bound: float) -> str | None:
    length = None if row.costs is None else row.costs.length
    if length is None:
        why = row.costs.withheld if row.costs is not None else None
        return f"cannot be judged: {why or 'there is no target to compare with'}"
    return None if length.of_means <= bound else f"writes answers {length.of_means:.3f}x as long as target's"


def _speed(row: Judged, _: Judged | None, bound: float) -> str | None:
    if row.speed_vs_target is None:
        return "has no target to compare with"
    return None if row.speed_vs_target >= bound else f"is {row.speed_vs_target:.2f}x as fast as target"


def _quality(row: Judged, _: Judged | None, bound: float) -> str | None:
    quality: float | None = getattr(row, "quality", None)  # which a sweep's rows have
    if quality is None:
        return "has no quality"
    return None if quality >= bound else f"has {quality:.3f}"


_JUDGES: dict[str, Callable[[Judged, Judged | None, float], str | None]] = {
    "lossless": _lossless,
    "same-answer": _same,
    "no-loops": _loops,
    "length": _length,
    "speedup": _speed,
    "quality": _quality,
}
