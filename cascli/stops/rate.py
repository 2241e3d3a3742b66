"""Keeps drafting while that makes the text faster, given the acceptance in this answer and what steps cost here.

A drafted token yields one token if it and all before it pass; it costs a draft step and a wider check. It is worth
drafting if it yields more tokens than its steps would otherwise. The chance that a draft passes is learnt by class of
the draft model's best probability; before the draft step is made, it is the mean over all positions seen.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cascli.analysis import theory
from cascli.stops.base import Reading, Stop, Stopping
from cascli.trace import StepCosts

EDGES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
"""Boundaries between the classes of best probabilities."""
EXPECTED = (0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.97)
"""Acceptance expected in each class before anything is known."""
MEAN = 0.7
"""Acceptance expected at any position before anything is known."""
WEIGHT = 2.0
"""Weight of these expectations, in drafts."""
MEMORY = 0.97
"""Factor on the weight of earlier rounds after each round, so that a text that becomes easy is tried again."""


@dataclass(frozen=True)
class Rate(Stop):
    """Keeps drafting while the expected gain in time is positive, and drafts nothing where no draft pays."""

    summary: ClassVar[str] = "keeps drafting while the expected gain is positive, by measured step times"
    formula: ClassVar[str] = (
        "go on if for some m the next m tokens bring, on average, more than R (m c + v(d + m) - v(d)) tokens;"
        " R is the rate of the best fixed k at the acceptance so far"
    )
    source: ClassVar[str] = "the marginal rule for tokens per second; acceptance learnt within the answer"
    needs_costs: ClassVar[bool] = True
    reads: ClassVar[Reading | None] = "best"

    def begin(self, costs: StepCosts | None) -> Stopping:
        """Start an answer with nothing learnt yet.

        Raises:
            ValueError: `costs` is None.
        """
        if costs is None:
            raise ValueError("stop 'rate' needs the costs of steps")
        return Going(costs)


class Going(Stopping):
    """Acceptance learnt within an answer, and the decisions that follow from it."""

    reads: ClassVar[Reading | None] = Rate.reads

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._most = 0
        self._passed = [WEIGHT * each for each in EXPECTED]
        self._tested = [WEIGHT] * len(EXPECTED)
        self._seen = [0.0] * len(EXPECTED)

    def most(self, n: int) -> int:
        """Return `n`, and fix for the round the rate at which a token must pay."""
        self._most = n
        self._mean = self.mean_acceptance()
        longest = len(self._costs.v) - 1
        self._rate = max(
            theory.expected_tokens(self._mean, k) / self._costs.round(k, self._mean**k) for k in range(longest + 1)
        )
        return n

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Decide with the mean acceptance for all tokens to come, each of which costs a draft step.

        A step that is made anyway, for q after the last token, needs no decision.
        """
        stopping = self._costs.round(len(drawn), self._reach(drawn))
        return self._costs.reads_last or self._gains(drawn, self._mean, stopping)

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Decide with the next token's acceptance; its step is made, and a rule that reads q here needs no other."""
        stopping = self._costs.round(len(drawn)) + (0.0 if self._costs.reads_last else self._costs.c)
        return self._gains(drawn, self.acceptance(here), stopping)

    def _reach(self, drawn: Sequence[float]) -> float:
        """Probability that all of these pass."""
        return math.prod(map(self.acceptance, drawn))

    def _gains(self, drawn: Sequence[float], first: float, stopping: float) -> bool:
        """Whether more drafting pays, compared with stopping now, when the round costs `stopping`."""
        kept, more = self._reach(drawn) * first, list[float]()
        for n in range(len(drawn) + 1, self._most + 1):
            more.append(self._costs.round(n, kept) - stopping)
            kept *= self._mean
        return theory.gain_of_drafting_on(self._reach(drawn), first, self._mean, self._rate, more) > 0

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        """Count the round's drafts, after decaying the earlier counts."""
        for i, expected in enumerate(EXPECTED):
            self._passed[i] = WEIGHT * expected + MEMORY * (self._passed[i] - WEIGHT * expected)
            self._tested[i] = WEIGHT + MEMORY * (self._tested[i] - WEIGHT)
            self._seen[i] *= MEMORY
        for place, best in enumerate(seen):
            i = _class(best)
            self._seen[i] += 1
            if place < kept + rejected:
                self._tested[i] += 1
                self._passed[i] += place < kept

    def acceptance(self, best: float) -> float:
        """Acceptance of a draft from a distribution with this best probability."""
        i = _class(best)
        return self._passed[i] / self._tested[i]

    def mean_acceptance(self) -> float:
        """Mean acceptance over the positions that were read, whether or not a token was drafted there."""
        known = sum(n * p / t for n, p, t in zip(self._seen, self._passed, self._tested, strict=True))
        return (WEIGHT * MEAN + known) / (WEIGHT + sum(self._seen))


def _class(best: float) -> int:
    return bisect_right(EDGES, best)
