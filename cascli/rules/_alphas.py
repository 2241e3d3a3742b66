"""The alphas at which a rule keeps a draft, in closed form from the five numbers of its position.

A rule that compares a probability with a threshold keeps a draft iff tested >= a + b alpha, where a and b follow from
its `Threshold`. The result holds for the prefix that was decoded: under another rule the text might have diverged
earlier.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Self, get_type_hints

from cascli import rules
from cascli.errors import UsageError
from cascli.rules.base import Threshold, ThresholdRule

if TYPE_CHECKING:
    from cascli.trace import Detail


class Alphas(NamedTuple):
    """The alphas from `low` to `high`, inclusive."""

    low: float
    high: float

    @property
    def empty(self) -> bool:
        """Whether the interval is empty."""
        return self.low > self.high

    def __contains__(self, alpha: object) -> bool:
        """Whether `alpha` is in the interval."""
        return isinstance(alpha, int | float) and self.low <= alpha <= self.high


ALL = Alphas(-math.inf, math.inf)
NONE = Alphas(math.inf, -math.inf)


class RuleInAlpha(NamedTuple):
    """A threshold rule that is linear in alpha: its threshold is `at_zero + alpha * slope`, field by field."""

    kind: type[ThresholdRule]
    at_zero: Threshold
    slope: Threshold
    allowed: Alphas

    @classmethod
    def of(cls, kind: type[ThresholdRule]) -> Self | None:
        """Return the rule in this form; None if it has its own `keep`, does not choose, or is not linear in alpha."""
        if kind.keep is not ThresholdRule.keep or not kind().chooses:
            return None
        # Not validated, since the line continues outside alpha's range. Fields 1 to 3 are the terms of the sum.
        at_zero, at_one, at_two = (kind(alpha=alpha).threshold() for alpha in (0.0, 1.0, 2.0))
        parts = zip(at_zero[1:4], at_one[1:4], at_two[1:4], strict=True)
        is_linear = all(math.isclose(b - a, c - b, abs_tol=1e-9) for a, b, c in parts)
        if not is_linear or not at_zero.tests == at_one.tests == at_two.tests:
            return None
        constant, best, disagreement = (b - a for a, b in zip(at_zero[1:4], at_one[1:4], strict=True))
        slope = Threshold(at_zero.tests, constant, best, disagreement)
        return cls(kind, at_zero, slope, _allowed(kind))

    def keeps(self, seen: Detail) -> Alphas | None:
        """The alphas at which the draft of this detail is kept; None if a number that the rule needs is unknown."""
        tested = {"best q1": seen.max_q1, "q1": seen.q1, "p1": seen.p1}[self.at_zero.tests]
        at_zero, slope = _value(self.at_zero, seen), _value(self.slope, seen)
        if tested is None or at_zero is None or slope is None:
            return None
        room = tested - at_zero
        if slope == 0:
            return ALL if room >= 0 else NONE
        return Alphas(room / slope, math.inf) if slope < 0 else Alphas(-math.inf, room / slope)


def _value(t: Threshold, seen: Detail) -> float | None:
    """The threshold's sum; None if a number that it needs is unknown."""
    total = t.constant
    for factor, number in ((t.of_best_p1, seen.max_p1), (t.of_disagreement, seen.disagreement)):
        if factor and number is None:
            return None
        total += factor * (number or 0.0)
    return total


def _allowed(kind: type[ThresholdRule]) -> Alphas:
    """The alphas that a user may give."""
    bounds = getattr(get_type_hints(kind, include_extras=True)["alpha"], "__metadata__", ())
    parts = [part for bound in bounds for part in getattr(bound, "metadata", [bound])]
    low = [float(part.ge) for part in parts if hasattr(part, "ge")]
    high = [float(part.le) for part in parts if hasattr(part, "le")]
    return Alphas(max(low, default=-math.inf), min(high, default=math.inf))


def rules_in_alpha() -> dict[str, RuleInAlpha]:
    """The rules that can be evaluated from a `Detail`, by name; broken rules of other packages are left out."""
    lines = {}
    for name in rules.names():
        try:
            kind = rules.load(name)
            line = RuleInAlpha.of(kind) if issubclass(kind, ThresholdRule) else None
        except UsageError:
            continue
        if line is not None:
            lines[name] = line
    return lines
