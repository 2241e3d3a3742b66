"""How long recorded answers would have taken with other drafts. No torch.

An answer that follows the target's distribution would have been the same whatever was drafted; only the number of
rounds differs. The time follows from the probability that a draft passes at each of the answer's tokens, and from the
cost of rounds on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

from cascli.analysis import theory
from cascli.analysis.answer_costs import Ratio, paired
from cascli.trace import Data

TRIALS = 8
"""Number of simulations of an answer's tests, where a stop depends on outcomes that are not certain."""
Cost = Callable[[int], float]
"""Cost of a round in target steps, by the number of tokens that it drafts."""
Drafts = Callable[[int], Sequence[float]]
"""For a round that starts at a given token of an answer: the probability that each drafted token passes."""


class Machine(Data):
    """Measured cost of rounds on this machine; a target step is one over a single token."""

    step_seconds: float
    """Time of a target step, in seconds."""
    c: float
    """A step of the draft model, in target steps; 0 without a draft model."""
    v: list[float]
    """A target call over 1, 2, ... tokens, in target steps."""
    outside: float
    """Time outside the models per round that drafts, in target steps, as measured."""
    outside_drafted: float | None = None
    """Drafted tokens per round where `outside` was measured. What exceeds `outside_alone` is assumed to be proportional
    to them, and the rest to be the same for all rounds. None if nothing was drafted, and in older documents: all of it
    is then the same for all rounds."""
    outside_alone: float
    """Time outside the models per token of the target alone, in target steps."""
    draft_reading: float
    """Time the draft model takes to read a prompt, over the time the target takes."""

    @property
    def longest(self) -> int:
        """Largest number of drafted tokens whose check was timed."""
        return len(self.v) - 1

    @property
    def alone(self) -> float:
        """Cost of a token of the target alone, in target steps."""
        return 1 + self.outside_alone

    def round(self, drafted: int, *, steps: float, extra: float = 0.0) -> float:
        """Return the cost of a round with `drafted` tokens, `steps` draft model steps and `extra` additional time."""
        return self.c * steps + self.v[drafted] + self._outside(drafted) + extra

    def _outside(self, drafted: int) -> float:
        """Return the time outside the models of a round with `drafted` tokens; see `cascli.analysis.explanation`."""
        if not self.outside_drafted:
            return self.outside
        fixed = min(self.outside_alone, self.outside)
        return fixed + (self.outside - fixed) * drafted / self.outside_drafted


class Recorded(NamedTuple):
    """A recorded answer."""

    prompt: Hashable
    """The prompt it answers; turns of a conversation share it."""
    tokens: int
    reading: float
    """Time the target took to read everything before the answer, in target steps."""
    ended: bool = False
    """Whether it ended on its own, which drafts do not know; one that a limit cuts is not drafted beyond."""


class Deciding(Protocol):
    """Decides when drafts end; see `cascli.stops.base.Stopping`."""

    @property
    def reads(self) -> str | None:
        """The number it uses at each position; None if it uses none."""

    def most(self, n: int) -> int:
        """Return how many tokens, at most n, the next round may draft."""

    def before_step(self, drawn: Sequence[float]) -> bool:
        """Return whether the draft model takes another step."""

    def before_draw(self, drawn: Sequence[float], here: float) -> bool:
        """Return whether a token is drawn at the position where `here` was read."""

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        """Take in the outcome of a round."""


class Replayed(NamedTuple):
    """Predictions for the recorded answers."""

    speed: Ratio
    """Time of the target alone over that of the strategy, for whole answers, paired by prompt."""
    tokens_per_round: float


def replayed(
    answers: Sequence[Recorded],
    machine: Machine,
    costs: Sequence[float],
    rounds: Sequence[float],
    *,
    reads_draft: bool,
) -> Replayed:
    """Return the speed of a strategy over the target alone, reading prompts included.

    Args:
        answers: the recorded answers.
        machine: the cost of steps.
        costs: cost of each answer's rounds, in target steps.
        rounds: number of rounds of each answer.
        reads_draft: whether the draft model reads the prompt too.
    """
    spent: dict[Hashable, tuple[float, float]] = {}
    for answer, cost in zip(answers, costs, strict=True):
        alone, ours = spent.get(answer.prompt, (0.0, 0.0))
        reading = answer.reading * (1 + machine.draft_reading * reads_draft)
        spent[answer.prompt] = (alone + answer.reading + answer.tokens * machine.alone, ours + reading + cost)
    speed = paired([[each] for each in spent.values()])
    return Replayed(speed, sum(answer.tokens for answer in answers) / sum(rounds))


def room(tokens: int, t: int, k: int, *, ended: bool) -> int:
    """Return how many of k tokens are drafted in a round at token t of an answer.

    Before a limit that cuts the answer, no draft is made for the token that a round writes in any case. An answer that
    ends on its own is drafted beyond: drafters do not know, and do not stop at an end of their own.
    """
    return k if ended else min(k, tokens - 1 - t)


def along(chances: Sequence[float], k: int, *, ended: bool = False) -> Drafts:
    """Return rounds of k drafts that pass with these probabilities at an answer's tokens; `ended` as in `Recorded`.

    Its last token counts as one that fails: whether it is drafted or replaces a draft, the answer ends with it.
    """
    n = len(chances)

    def drafts(t: int) -> Sequence[float]:
        drafted = room(n, t, k, ended=ended)
        return [*chances[t : min(t + drafted, n - 1)], *[0.0] * max(0, t + drafted - (n - 1))]

    return drafts


def fixed_cost(machine: Machine, *, reads_last: bool = False, extra: Cost | None = None, model: bool = True) -> Cost:
    """Return a round's cost by its length alone: one draft step per token, plus one if q is read after the last."""
    return lambda j: machine.round(
        j, steps=(j + reads_last) if model else 0.0, extra=0.0 if extra is None else extra(j)
    )


def with_stop(
    chances: Sequence[float],
    readings: Sequence[float],
    begin: Callable[[], Deciding],
    most: int,
    machine: Machine,
    toss: Callable[[], float],
    *,
    ended: bool = False,
) -> tuple[float, float]:
    """Return the cost and number of rounds of an answer whose drafts a stop ends.

    After a rejected draft, the draft model would have read its own text; the recorded answer's numbers are used here.

    Args:
        chances: probability that a draft passes, at each token.
        readings: the number that the stop uses, at each token.
        begin: creates the stop's state for one answer.
        most: the most drafted tokens per round.
        machine: the cost of steps.
        toss: draws uniform numbers, continuing from answer to answer: if every answer used the same numbers, the errors
            would add up.
        ended: whether the answer ended on its own, as in `Recorded`; beyond it, the last number is used.

    Returns:
        Means over trials; there is only one trial if all chances are 0 or 1.
    """
    certain = all(each in (0.0, 1.0) for each in chances)
    trials = [
        _trial(chances, readings, begin(), most, machine, toss, ended=ended) for _ in range(1 if certain else TRIALS)
    ]
    return tuple(sum(each) / len(trials) for each in zip(*trials, strict=True))


def _trial(
    chances: Sequence[float],
    readings: Sequence[float],
    stop: Deciding,
    most: int,
    machine: Machine,
    toss: Callable[[], float],
    *,
    ended: bool,
) -> tuple[float, int]:
    place = rounds = 0
    cost, last = 0.0, len(chances) - 1
    while place <= last:
        at_most = room(len(chances), place, most, ended=ended)
        drafted, steps, seen = _drafted(readings, place, stop, max(0, min(stop.most(at_most), at_most)))
        kept = 0
        while kept < min(drafted, last - place) and toss() < chances[place + kept]:
            kept += 1
        stop.learn(seen[: kept + 1], kept, rejected=kept < drafted)
        cost += machine.round(drafted, steps=steps)
        place, rounds = place + kept + 1, rounds + 1
    return cost, rounds


def _drafted(readings: Sequence[float], place: int, stop: Deciding, most: int) -> tuple[int, int, list[float]]:
    """Return a round's drafted tokens, its draft steps and its stop's readings, as `by_steps` would."""
    seen: list[float] = []
    if stop.reads is None:
        return most, most, seen
    for drafted in range(most):
        if not stop.before_step(seen):
            return drafted, drafted, seen
        here, before = readings[min(place + drafted, len(readings) - 1)], list(seen)
        seen.append(here)
        if stop.reads != "chance" and not stop.before_draw(before, here):
            return drafted, drafted + 1, seen
    return most, most, seen


def lookup_drafts(copies: Sequence[Sequence[int]], text: Sequence[int], k: int, *, ended: bool = False) -> Drafts:
    """Return rounds that draft the given copies at each token of an answer; a copy passes if it equals the answer.

    The copies end where a text would; `ended` as in `Recorded`, and the last token as in `along`.
    """
    n = len(text)

    def drafts(t: int) -> list[float]:
        copied = copies[t][: k if ended else min(k, n - 1 - t)]
        before = zip(copied, text[t : n - 1], strict=False)
        passing = [float(ours == theirs) for ours, theirs in before]
        return [*passing, *[0.0] * (len(copied) - len(passing))]

    return drafts


def best_length(speed: Callable[[int], float], longest: int, start: int = 1) -> int:
    """Return the fastest block length near `start`, moving down or up while speed grows; ties go to the smaller."""
    known: dict[int, float] = {}

    def at(k: int) -> float:
        if k not in known:
            known[k] = speed(k)
        return known[k]

    k = min(max(start, 1), longest)
    while k > 1 and at(k - 1) >= at(k):
        k -= 1
    while k < longest and at(k + 1) > at(k):
        k += 1
    return k


def oracle(answers: Sequence[Recorded], machine: Machine, chances: Sequence[Sequence[float]]) -> float:
    """Return the speed of rounds that know how many drafts pass and draft what pays: no choice of lengths is faster."""
    cost = fixed_cost(machine)
    longest = machine.longest
    least = [theory.least_cost(len(each), along(each, longest), cost, longest) for each in chances]
    return replayed(answers, machine, least, [1.0] * len(least), reads_draft=True).speed.of_means
