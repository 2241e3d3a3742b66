"""Requirements on a comparison or a sweep, so that a script can stop when one is not met. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cascli.analysis.answer_costs import AnswerCosts
from cascli.analysis.digits import MOST_DIGITS, apart
from cascli.errors import UsageError, unknown
from cascli.settings import TARGET


class Judged(Protocol):
    """A row of a comparison or of a sweep."""

    @property
    def strategy(self) -> str:
        """The strategy with its parameters."""

    @property
    def lossless(self) -> bool | None:
        """Whether TV(pi, p) was 0 at every token."""

    @property
    def same_as_target(self) -> bool | None:
        """Whether all answers are the target's."""

    @property
    def speed_vs_target(self) -> float | None:
        """Speed over the target's."""

    @property
    def costs(self) -> AnswerCosts | None:
        """Costs of the strategy's answers."""


class Requirement(NamedTuple):
    """A requirement that every strategy but `target` must meet."""

    text: str
    name: str
    bound: float | None

    @classmethod
    def of(cls, text: str, *, scored: bool) -> Requirement:
        """Parse a flag such as `lossless` or `length<=1.05`; `scored` if answers have a quality.

        Raises:
            UsageError: the requirement is unknown, or its bound is invalid.
        """
        name, sign, bound = _parts(text)
        if name not in SIGNS:
            raise UsageError(f"--require: {unknown('requirement', name, list(SIGNS))}")
        if name == "quality" and not scored:
            raise UsageError("--require quality: a comparison scores no answers; a sweep does.")
        expected_sign = SIGNS[name]
        if not expected_sign:
            if sign or bound:
                raise UsageError(f"--require {name}: takes no bound (got '{text}')")
            return cls(name, name, None)
        try:
            value = float(bound or "")
        except ValueError:
            value = float("nan")
        if sign != expected_sign or not 0 <= value < float("inf"):
            raise UsageError(f"--require {name}: write {name}{expected_sign}NUMBER (got '{text}')")
        return cls(f"{name}{expected_sign}{bound}", name, value)


def _parts(text: str) -> tuple[str, str, str]:
    """Split into name, sign and bound; sign and bound are empty if there is none."""
    name, sign, bound = re.split(r"([<>=]+)", text, maxsplit=1) if re.search("[<>=]", text) else (text, "", "")
    return name.strip(), sign, bound.strip()


SIGNS = {"lossless": "", "same-answer": "", "no-loops": "", "length": "<=", "speedup": ">=", "quality": ">="}
"""The known requirements, each with the sign before its bound."""


def first_violation(requirements: Sequence[Requirement], rows: Sequence[Judged]) -> str | None:
    """Describe the first violation: the requirement, the strategy and what it has instead; None if all are met.

    A requirement that cannot be judged counts as violated: the gate fails closed.
    """
    target = next((row for row in rows if row.strategy == TARGET), None)
    if requirements and all(row is target for row in rows):
        return f"{requirements[0].text} is required, but no strategy other than {TARGET} was run"
    for requirement in requirements:
        for row in rows:
            if row is target:
                continue
            violation = _JUDGES[requirement.name](row, target, requirement.bound or 0.0)
            if violation is not None:
                return f"{requirement.text} is required, but {row.strategy} {violation}"
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
    both = [100 * row.costs.looped_share, 100 * theirs]
    share, reference = next(
        (texts for texts in ([f"{each:.{n}f}%" for each in both] for n in range(1, MOST_DIGITS)) if len({*texts}) > 1),
        [f"{each}%" for each in both],
    )
    return f"has {share} of its tokens in loops ({f'target {reference}' if target is not None else 'none is allowed'})"


def _length(row: Judged, _: Judged | None, bound: float) -> str | None:
    length = None if row.costs is None else row.costs.length
    if length is None:
        why = row.costs.withheld if row.costs is not None else None
        return f"cannot be judged: {why or 'there is no target to compare with'}"
    if length.of_means <= bound:
        return None
    return f"writes answers {apart(length.of_means, bound, 3)}x as long as target's"


def _speed(row: Judged, _: Judged | None, bound: float) -> str | None:
    if row.speed_vs_target is None:
        return "has no target to compare with"
    return None if row.speed_vs_target >= bound else f"is {apart(row.speed_vs_target, bound, 2)}x as fast as target"


def _quality(row: Judged, _: Judged | None, bound: float) -> str | None:
    quality: float | None = getattr(row, "quality", None)  # only a sweep's rows have one
    if quality is None:
        return "has no quality"
    return None if quality >= bound else f"has {apart(quality, bound, 3)}"


_JUDGES: dict[str, Callable[[Judged, Judged | None, float], str | None]] = {
    "lossless": _lossless,
    "same-answer": _same,
    "no-loops": _loops,
    "length": _length,
    "speedup": _speed,
    "quality": _quality,
}
